// Command watchword is an authentication service for internal microservices.
package main

import (
	"os"

	"github.com/watchword-auth/watchword/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Terminal{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
