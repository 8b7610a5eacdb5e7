import json

from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from jwcrypto.jwt import JWT

from lines import KeySet, answer, audience, issuer

keys = KeySet()


def verify(token):
    unverified = JWS()
    unverified.deserialize(token)
    key = JWK(**keys.jwk(unverified.jose_header["kid"]))
    checked = JWT(algs=["EdDSA", "ES256", "RS256"], check_claims={"iss": issuer, "aud": audience, "exp": None})
    checked.leeway = 0  # jwcrypto accepts an expired token for 60 seconds
    checked.deserialize(token, key)
    return json.loads(checked.claims)


answer(verify)
