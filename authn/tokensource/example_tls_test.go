package tokensource_test

import (
	"log"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
)

// A connection with TLS to a Watchword server on another machine.
func ExampleDial_tls() {
	tls, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: "ca.pem"})
	if err != nil {
		log.Fatal(err)
	}
	defer tls.Close()
	conn, err := tokensource.Dial("auth.example:50051", grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}

// A connection to several replicas with one DNS name: calls go to each replica in turn.
func ExampleDial_dns() {
	tls, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: "ca.pem"})
	if err != nil {
		log.Fatal(err)
	}
	defer tls.Close()
	conn, err := tokensource.Dial("dns:///auth.example:50051", grpc.WithTransportCredentials(tls), tokensource.RoundRobin())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}
