//go:build !unix

package durable

import (
	"io/fs"
	"os"
)

// CheckWriters, CheckOwner, Exposure and CheckUsable find no fault, and Denied adds nothing: outside
// of Unix the mode of a file does not tell which users are allowed to read or write.
func CheckWriters(string) error { return nil }

// CheckOwner returns nil, since this system does not tell which user owns a file.
func CheckOwner(string) error { return nil }

// Exposure returns "", since the mode of a file tells nothing on this system.
func Exposure(string) string { return "" }

// CheckUsable returns nil, since the mode of a file tells nothing on this system.
func CheckUsable(string) error { return nil }

// Denied returns err as it is.
func Denied(_ string, err error) error { return err }

func adopt(*os.File, fs.FileInfo, fs.FileMode) error { return nil }
