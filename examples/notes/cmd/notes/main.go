// Command notes serves a board of notes, guarded by tokens of a Watchword server.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"

	"example.com/notes"
)

const (
	// startTimeout limits the wait for Watchword's keys. Both servers may be started
	// together.
	startTimeout = time.Minute
	// stopTimeout limits the wait for running calls when the server stops.
	stopTimeout = 5 * time.Second
)

type config struct {
	addr, authAddr, audience, caFile string
}

func main() {
	var c config
	flag.StringVar(&c.addr, "addr", "127.0.0.1:50061", "address to serve on; this example has no TLS, so keep it on loopback")
	flag.StringVar(&c.authAddr, "auth-addr", "127.0.0.1:50051", "address of the Watchword server")
	flag.StringVar(&c.audience, "audience", "internal", "audience that tokens must be for")
	flag.StringVar(&c.caFile, "ca-file", "", "PEM certificates to trust for TLS to Watchword; none: plaintext, on loopback alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c); err != nil {
		fmt.Fprintf(os.Stderr, "notes: %q\n", err.Error()) // quoted, because it may hold text of a server
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, c config) error {
	conn, err := dial(c.authAddr, c.caFile)
	if err != nil {
		return fmt.Errorf("connecting to Watchword: %w", err)
	}
	defer conn.Close()

	verifier, err := newVerifier(ctx, conn, c.audience)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // stopped before the start was complete
	case err != nil:
		return fmt.Errorf("fetching the keys: %w", err)
	}
	defer verifier.Close()

	service, status := notes.NewService(), health.NewServer()
	server, err := notes.NewServer(verifier, service, status)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(os.Stderr, "notes: ready on %s\n", listener.Addr())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// First end the long calls: health watches and WatchNotes. Then the server waits for the
	// other calls, at most for stopTimeout.
	status.Shutdown()
	service.Close()
	impatient := time.AfterFunc(stopTimeout, server.Stop)
	defer impatient.Stop()
	server.GracefulStop()
	return <-failed
}

// dial returns a connection to Watchword. grpc-go connects at the first call.
func dial(addr, caFile string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if caFile != "" {
		fromFiles, err := authn.TLSFromFiles(authn.TLSFiles{CAFile: caFile})
		if err != nil {
			return nil, err
		}
		creds = fromFiles // reads the file again until the process ends
	}
	return tokensource.Dial(addr, grpc.WithTransportCredentials(creds))
}

// newVerifier returns a verifier with Watchword's keys.
func newVerifier(ctx context.Context, conn *grpc.ClientConn, audience string) (*authn.Verifier, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return authn.NewVerifier(ctx, conn,
		authn.WithAudience(audience),
		authn.WithPublicMethods(notes.PublicMethods),
		authn.WithLogger(slog.Default()))
}
