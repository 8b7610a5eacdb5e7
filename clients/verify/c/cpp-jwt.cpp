// Reads an access token from each line of standard input, and answers with a line: "ok" and the
// user's id, or "refused" and the error of the library. cpp-jwt reads no JWKS, so a folder has
// the public key KID.pem of each key.

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include <jwt/jwt.hpp>

using namespace jwt::params;

static std::string key(const std::string &folder, const std::string &token) {
  auto unverified = jwt::decode(token, algorithms({"none", "RS256", "ES256"}), verify(false));
  auto kid = unverified.header().create_json_obj().value("kid", "");
  if (kid.find('/') != std::string::npos)
    throw std::runtime_error("a strange kid");
  std::ifstream file(folder + "/" + kid + ".pem");
  return {std::istreambuf_iterator<char>(file), {}};
}

int main(int argc, char **argv) {
  if (argc != 5)
    return 2;
  for (std::string token; std::getline(std::cin, token);) {
    try {
      auto claims = jwt::decode(token, algorithms({"RS256", "ES256"}), secret(key(argv[4], token)),
                                issuer(argv[1]), verify(true));
      // The parameter aud of cpp-jwt takes no list.
      auto audiences = claims.payload().create_json_obj().at("aud");
      if (std::find(audiences.begin(), audiences.end(), argv[2]) == audiences.end())
        throw std::runtime_error("wrong audience");
      std::cout << "ok " << claims.payload().get_claim_value<std::string>("sub") << std::endl;
    } catch (const std::exception &e) {
      std::cout << "refused " << e.what() << std::endl;
    }
  }
}
