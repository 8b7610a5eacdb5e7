// Package e2e tests the shipped programs: the watchword binary, the downstream service in
// examples/notes, and the client of that service. Each program runs as a process. The
// tests call the programs over loopback, by the generated Go client, by grpcurl and by the
// command line. Further tests check the imports between packages.
//
// The package holds tests alone; no package imports e2e.
package e2e
