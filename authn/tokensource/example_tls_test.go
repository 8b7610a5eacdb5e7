package tokensource_test

import (
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/watchword-auth/watchword/authn/tokensource"
)

// A connection with TLS to a Watchword server on another machine.
func ExampleDial_tls() {
	tls, err := credentials.NewClientTLSFromFile("ca.pem", "")
	if err != nil {
		log.Fatal(err)
	}
	conn, err := tokensource.Dial("auth.example:50051", grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}

// A connection to several replicas with one DNS name: calls go to each replica in turn.
func ExampleDial_dns() {
	tls, err := credentials.NewClientTLSFromFile("ca.pem", "")
	if err != nil {
		log.Fatal(err)
	}
	conn, err := tokensource.Dial("dns:///auth.example:50051", grpc.WithTransportCredentials(tls),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}
