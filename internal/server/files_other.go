//go:build !unix

package server

// missing says what this system cannot do for the server.
const missing = "this system cannot write a folder to disk, and file modes keep no other users away: " +
	"after a power failure a new key file or backup may be lost, and you must protect the folder of the files yourself"

// fileLimit returns 0: Go cannot read a limit of open files on this system.
func fileLimit() int { return 0 }
