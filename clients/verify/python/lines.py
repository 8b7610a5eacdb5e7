"""Reads an access token from each line of standard input, and answers with a line: "ok" and the
user's id, or "refused" and the error of the library."""

import json
import sys
import time
import urllib.request

issuer, audience, jwks_uri = sys.argv[1:4]


def answer(verify):
    for line in sys.stdin:
        try:
            said = "ok " + verify(line.strip())["sub"]
        except Exception as error:
            said = f"refused {type(error).__name__}: {error}"
        print(said.replace("\n", " "), flush=True)


class KeySet:
    """The JWKS, for libraries that fetch nothing. An unknown kid causes a fetch, at most once in
    pause seconds: forged tokens must not flood the Watchword server. A withdrawn key is gone
    after lifetime seconds."""

    def __init__(self, pause=5, lifetime=300):
        self.pause, self.lifetime = pause, lifetime
        self.keys, self.fetched = {}, float("-inf")

    def jwk(self, kid):
        age = time.monotonic() - self.fetched
        if age > self.lifetime or (kid not in self.keys and age > self.pause):
            with urllib.request.urlopen(jwks_uri, timeout=10) as response:
                self.keys = {key["kid"]: key for key in json.load(response)["keys"]}
            self.fetched = time.monotonic()
        return self.keys[kid]
