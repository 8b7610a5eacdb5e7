package store

import "time"

// Issuer is a row of the table issuers: an issuer whose tokens are accepted as assertions.
// Of Jwks, JwksURI and Discovery one is set.
type Issuer struct {
	Name         string
	Issuer       string // the claim iss
	Jwks         string // a JSON Web Key Set (RFC 7517)
	JwksURI      string
	Discovery    bool   // the metadata of Issuer name the URL of the keys (RFC 8414)
	CAPEM        string // empty: the CAs of the system
	MaxLifetime  time.Duration
	AllowPrivate bool // the keys may come from a private, loopback or link-local address
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// Binding is a row of the table bindings: it names a service account for assertions of an
// issuer.
type Binding struct {
	ID        string
	Issuer    string // the name of the issuer
	Subject   string // the claim sub
	Claims    []BoundClaim
	UserID    string
	CreatedAt time.Time
}

// BoundClaim asks for the value of a claim of an assertion.
type BoundClaim struct {
	Path  []string `json:"path"`  // names from the outside in
	Value any      `json:"value"` // a string, a float64 or a bool
}
