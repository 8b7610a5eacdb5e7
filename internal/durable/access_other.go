//go:build !unix

package durable

import (
	"io/fs"
	"os"
)

// CheckWriters, CheckOwner, Exposure and CheckUsable find no fault, and Denied adds nothing: outside
// of Unix the mode of a file does not tell which users are allowed to read or write.
func CheckWriters(string) error { return nil }

// CheckOwner returns nil.
func CheckOwner(string) error { return nil }

// Exposure returns "".
func Exposure(string) string { return "" }

// CheckUsable returns nil.
func CheckUsable(string) error { return nil }

// Denied returns err.
func Denied(_ string, err error) error { return err }

func adopt(*os.File, fs.FileInfo, fs.FileMode) error { return nil }
