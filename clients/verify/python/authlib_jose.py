from authlib.jose import JsonWebKey, JsonWebToken

from lines import KeySet, answer, audience, issuer

keys = KeySet()
tokens = JsonWebToken(["EdDSA", "ES256", "RS256"])
rules = {
    "iss": {"essential": True, "value": issuer},
    "aud": {"essential": True, "value": audience},
    "exp": {"essential": True},
}


def find(header, _):
    return JsonWebKey.import_key(keys.jwk(header["kid"]))


def verify(token):
    claims = tokens.decode(token, find, claims_options=rules)
    claims.validate()
    return claims


answer(verify)
