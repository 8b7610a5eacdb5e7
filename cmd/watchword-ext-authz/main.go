// Command watchword-ext-authz answers Envoy's question whether a request is allowed
// (envoy.service.auth.v3.Authorization/Check), by Watchword's access tokens.
package main

import (
	"os"

	"github.com/watchword-auth/watchword/internal/extauthz"
)

func main() {
	os.Exit(extauthz.Main(os.Args[1:], os.Stdout, os.Stderr))
}
