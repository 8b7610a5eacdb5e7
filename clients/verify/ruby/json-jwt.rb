require 'json/jwt'

require_relative 'lines'

# json-jwt checks the signature alone.
def check(claims)
  raise 'wrong issuer' unless claims['iss'] == ISSUER
  raise 'wrong audience' unless Array(claims['aud']).include?(AUDIENCE)
  raise 'expired' unless claims['exp'] > Time.now.to_i

  claims
end

answer do |token|
  kid = JSON::JWT.decode(token, :skip_verification).header['kid']
  jwk = [false, true].lazy.filter_map { |fresh| jwks(fresh: fresh)['keys'].find { |k| k['kid'] == kid } }.first
  raise 'unknown key' unless jwk

  check(JSON::JWT.decode(token, JSON::JWK.new(jwk), %i[EdDSA ES256 RS256]))
end
