/* Reads an access token from each line of standard input, and answers with a line: "ok" and the
 * user's id, or "refused" and the error of the library. libjwt 1 reads no JWKS, so a folder has
 * the public key KID.pem of each key. */

#include <errno.h>
#include <jwt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static unsigned char key[8192];

/* read_key reads the public key of a token, and returns its length; 0 without such a key. */
static int read_key(const char *folder, const char *token)
{
	char path[4096];
	const char *kid;
	jwt_t *unverified;
	FILE *file;
	int n;

	if (jwt_decode(&unverified, token, NULL, 0))
		return 0;
	kid = jwt_get_header(unverified, "kid");
	snprintf(path, sizeof(path), "%s/%s.pem", folder, kid && !strchr(kid, '/') ? kid : "");
	jwt_free(unverified);
	file = fopen(path, "r");
	if (!file)
		return 0;
	n = fread(key, 1, sizeof(key), file);
	fclose(file);
	return n;
}

/* has_audience reports whether the claim aud, a text or a list, has the audience. */
static int has_audience(jwt_t *jwt, const char *audience)
{
	char want[256], *claim = jwt_get_grants_json(jwt, "aud");
	int found;

	snprintf(want, sizeof(want), "\"%s\"", audience);
	found = claim && strstr(claim, want);
	free(claim);
	return found;
}

static void answer(const char *issuer, const char *audience, const char *folder, const char *token)
{
	jwt_t *jwt;
	int n = read_key(folder, token), err;

	/* Without a key jwt_decode would verify nothing. */
	err = n ? jwt_decode(&jwt, token, key, n) : EINVAL;
	if (err) {
		printf("refused jwt_decode: %s\n", strerror(err));
		return;
	}
	/* libjwt takes the algorithm from the token: with HS256 the public key would be the secret. */
	if (jwt_get_alg(jwt) != JWT_ALG_RS256 && jwt_get_alg(jwt) != JWT_ALG_ES256)
		printf("refused the algorithm\n");
	else if (!jwt_get_grant(jwt, "iss") || strcmp(jwt_get_grant(jwt, "iss"), issuer))
		printf("refused the issuer\n");
	else if (!has_audience(jwt, audience))
		printf("refused the audience\n");
	else if (jwt_get_grant_int(jwt, "exp") <= time(NULL))
		printf("refused: expired\n");
	else
		printf("ok %s\n", jwt_get_grant(jwt, "sub"));
	jwt_free(jwt);
}

int main(int argc, char **argv)
{
	static char token[16384];

	if (argc != 5)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(token, sizeof(token), stdin)) {
		token[strcspn(token, "\n")] = 0;
		answer(argv[1], argv[2], argv[4], token);
	}
	return 0;
}
