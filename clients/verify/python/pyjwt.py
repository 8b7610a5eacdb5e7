import jwt

from lines import answer, audience, issuer, jwks_uri

keys = jwt.PyJWKClient(jwks_uri)


def verify(token):
    key = keys.get_signing_key_from_jwt(token).key
    return jwt.decode(token, key, algorithms=["EdDSA", "ES256", "RS256"], issuer=issuer, audience=audience)


answer(verify)
