//go:build !unix

package server

// missing tells the operator what the server lacks on this operating system.
const missing = "this system cannot write a folder to disk, and file modes keep no other users away: " +
	"after a power failure a new key file or backup may be lost, and you must protect the folder of the files yourself"

// fileLimit returns 0: Go cannot read a limit of open files on this system.
func fileLimit() int { return 0 }
