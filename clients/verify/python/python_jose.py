from jose import jwt

from lines import KeySet, answer, audience, issuer

keys = KeySet()


def verify(token):
    key = keys.jwk(jwt.get_unverified_header(token)["kid"])
    return jwt.decode(token, key, algorithms=["EdDSA", "ES256", "RS256"], issuer=issuer, audience=audience)


answer(verify)
