package tokensource_test

import (
	"context"
	"log"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
)

// A process signs in with the JWT-SVID that its SPIRE agent gives. The example needs an agent, so
// it is compiled and not run.
func ExampleWorkload_spiffe() {
	ctx := context.Background()
	tls, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: "ca.pem"})
	if err != nil {
		log.Fatal(err)
	}
	defer tls.Close()
	authConn, err := tokensource.Dial("auth.example.com:443", grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer authConn.Close()

	agent, err := workloadapi.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer agent.Close()
	source, err := tokensource.Workload(authConn, func(ctx context.Context) (string, error) {
		svid, err := agent.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "https://auth.example.com"})
		if err != nil {
			return "", err
		}
		return svid.Marshal(), nil
	})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
}
