package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/store"
)

// localAuth serves AuthService/Verify alone.
type localAuth struct {
	watchwordv1.UnimplementedAuthServiceServer
	auth *rpc.Auth
}

// Verify serves AuthService/Verify.
func (a *localAuth) Verify(ctx context.Context, req *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	return a.auth.Verify(ctx, req)
}

// localTrust serves TrustService/GetKeySet alone.
type localTrust struct {
	watchwordv1.UnimplementedTrustServiceServer
	trust *rpc.Trust
}

// GetKeySet serves TrustService/GetKeySet.
func (t *localTrust) GetKeySet(ctx context.Context, req *watchwordv1.GetKeySetRequest) (*watchwordv1.GetKeySetResponse, error) {
	return t.trust.GetKeySet(ctx, req)
}

// serveVerify adds AuthService/Verify and TrustService/GetKeySet, with the keys and the
// revocations that the database has now, to the services of l. The verifier accepts tokens
// for the services in audience.
//
// Errors: errors of the master key file; an error if no server has started on the database.
func (l *Local) serveVerify(ctx context.Context, keys *localKeys, audience []string) error {
	master, err := keys.master()
	if err == nil {
		err = CheckMaster(ctx, l.store, master)
	}
	if err != nil {
		return err
	}
	silent := slog.New(slog.DiscardHandler)
	origin := feed.Origin{Keys: issuer.NewKeySet(master, silent).Read}
	err = l.store.Read(ctx, func(tx *store.Tx) (err error) {
		if origin.Issuer, err = tx.Setting(store.OwnIssuer); err == nil {
			origin.DatabaseID, err = tx.Setting(store.DatabaseID)
		}
		return err
	})
	if err == nil && origin.Issuer == "" {
		err = errors.New("no server has started on this database, so there is no token of it")
	}
	if err != nil {
		return err
	}
	f, err := feed.Open(ctx, l.store, origin, silent)
	if err != nil {
		return err
	}
	verifier, err := authn.NewVerifier(ctx, f.Hub().Conn(), authn.WithAudience(audience...), authn.WithLogger(silent))
	if err != nil {
		return fmt.Errorf("starting a verifier: %w", err)
	}
	l.verifier = verifier
	watchwordv1.RegisterAuthServiceServer(l.grpc, &localAuth{auth: &rpc.Auth{Verifier: verifier, Audience: audience}})
	watchwordv1.RegisterTrustServiceServer(l.grpc, &localTrust{trust: &rpc.Trust{Hub: f.Hub()}})
	return nil
}
