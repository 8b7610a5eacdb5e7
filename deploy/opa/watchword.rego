# Decides calls by the access tokens of Watchword. The input is
#   {"method": "/package.Service/Method", "authorization": ["Bearer TOKEN"]}
# where authorization holds every value of the metadata. docs/envoy.md says what OPA cannot see:
# logouts, and withdrawn keys until the key set is read again.
package watchword

default allow := false

# The methods that need no token.
public := {"/notes.v1.NotesService/About"}

# The roles of each method: the caller needs one of the roles. Empty: any valid token suffices.
roles := {
	"/notes.v1.NotesService/ListNotes": set(),
	"/notes.v1.NotesService/AddNote": {"writer", "admin"},
}

allow if input.method in public

allow if {
	claims
	roles[input.method] == set()
}

allow if {
	some role in claims.roles
	role in roles[input.method]
}

# claims holds the claims of a token that passed every check, and is undefined for any other token.
claims := payload if {
	count(input.authorization) == 1
	[scheme, token] := split(input.authorization[0], " ")
	lower(scheme) == "bearer"
	[valid, header, payload] := io.jwt.decode_verify(token, {
		"cert": key_set,
		"iss": data.settings.issuer,
		"aud": data.settings.audience,
	})
	valid
	header.typ == "at+jwt"
	header.alg in {"EdDSA", "ES256", "RS256"}
}

# OPA keeps the key set for as long as the server allows, --jwks-max-age. Without a key set, claims is
# undefined, and no call with a token is allowed.
key_set := response.raw_body if {
	response := http.send({
		"method": "GET",
		"url": data.settings.jwks_uri,
		"tls_ca_cert_file": object.get(data.settings, "ca_file", ""),
		"cache": true,
		"raise_error": false,
		"timeout": "2s",
	})
	response.status_code == 200
}
