// Package e2e tests the programs as they are shipped: the watchword binary, the
// downstream service in examples/notes and its client, each as a process of its
// own, talked to over loopback by the generated Go client, by grpcurl and by the
// command line. It also holds who may import what.
//
// The package itself is empty; nothing imports it.
package e2e
