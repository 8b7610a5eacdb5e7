// Package federation knows the trusted issuers and the bindings: which token of which issuer
// signs in which service account.
package federation
