package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	tokens "github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/store"
)

// leastDelegation checks one signature and makes another one, of a text as long as a delegated
// token, and does nothing else. leastDelegation uses no code of Watchword.
type leastDelegation struct {
	watchwordv1.UnimplementedAuthServiceServer
	public  ed25519.PublicKey
	private ed25519.PrivateKey
}

// leastActor is as long as the claim act of a delegated token.
var leastActor = base64.RawURLEncoding.EncodeToString([]byte(`,"act":{"sub":"0123456789abcdef","username":"front","ver":1}`))

func (s *leastDelegation) DelegateToken(_ context.Context, req *watchwordv1.DelegateTokenRequest) (*watchwordv1.DelegateTokenResponse, error) {
	subject := req.GetSubjectToken()
	dot := strings.LastIndexByte(subject, '.')
	signed := subject[:dot]
	signature, err := base64.RawURLEncoding.DecodeString(subject[dot+1:])
	if err != nil || !ed25519.Verify(s.public, []byte(signed), signature) {
		return nil, errLeast
	}
	signed += leastActor
	raw := signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(s.private, []byte(signed)))
	return &watchwordv1.DelegateTokenResponse{AccessToken: raw, TokenType: "Bearer", ExpiresIn: durationpb.New(lifetime)}, nil
}

// delegations compares DelegateToken of a real server with the least that a delegation can be:
// the same messages, one check of a signature, and one signature. Each subject's token is new to
// both sides.
func delegations(b *bench) error {
	ours, err := startWatchword("")
	if err != nil {
		return err
	}
	defer ours.close()
	r := race{turns: b.of(12, 40), stint: 120 * time.Millisecond, workers: 8, batch: 1, processor: true}
	subjects, front, err := ours.delegable(b.of(60_000, 200_000))
	if err != nil {
		return err
	}
	conns, err := dial(ours.addr, connections)
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	least, err := serve(func(s *grpc.Server) {
		watchwordv1.RegisterAuthServiceServer(s, &leastDelegation{public: public, private: private})
	})
	if err != nil {
		return err
	}
	defer least.close()
	foreign, err := foreignTokens(private, len(subjects))
	if err != nil {
		return err
	}
	all, err := r.run(side{"least", delegating(least.conns, front, foreign)}, side{"DelegateToken", delegating(conns, front, subjects)})
	if err != nil {
		return err
	}
	b.report("delegation/8-callers/cost-of-call-check-and-signature", 1/all[1].over(all[0]), "times", atMost(1.3))
	b.report("delegation/8-callers/call-check-and-signature", median(all[0]), "calls/processor-second", limit{})
	return nil
}

var errTooFew = errors.New("too few tokens for the turns: a token would be known from its cache")

// delegating returns a caller's call, with another one of the tokens each time.
func delegating(conns []*grpc.ClientConn, front string, subjects []string) func(worker, i int) error {
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+front)
	next := make(chan string, len(subjects))
	for _, s := range subjects {
		next <- s
	}
	close(next)
	return func(worker, _ int) error {
		subject, ok := <-next
		if !ok {
			return errTooFew
		}
		_, err := watchwordv1.NewAuthServiceClient(conns[worker%len(conns)]).DelegateToken(ctx, &watchwordv1.DelegateTokenRequest{SubjectToken: subject, Audience: "billing"})
		return err
	}
}

// foreignTokens makes tokens as long as ours, with golang-jwt.
func foreignTokens(key ed25519.PrivateKey, n int) ([]string, error) {
	list := make([]string, n)
	now := time.Now().Unix()
	for i := range list {
		t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"iss": "http://127.0.0.1:8080", "sub": "0123456789abcdef", "aud": []string{audience}, "iat": now, "exp": now + 3600,
			"jti": randomID(8), "sid": "0123456789abcdef", "username": "admin", "roles": []string{"admin"}, "ver": now,
		})
		t.Header["typ"], t.Header["kid"] = "at+jwt", "0123456789abcdef"
		var err error
		if list[i], err = t.SignedString(key); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// delegable returns tokens of the user admin for the audience, and a token of the service
// account front, which may delegate them to billing.
func (w *watchword) delegable(n int) (subjects []string, front string, err error) {
	ctx := context.Background()
	conns, err := dial(w.addr, 1)
	if err != nil {
		return nil, "", err
	}
	defer conns[0].Close()
	pair, err := w.login(watchwordv1.NewAuthServiceClient(conns[0]), "watchword")
	if err != nil {
		return nil, "", err
	}
	made, err := watchwordv1.NewUserServiceClient(conns[0]).CreateUser(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+pair.GetAccessToken()),
		&watchwordv1.CreateUserRequest{Username: "front", Kind: watchwordv1.UserKind_USER_KIND_SERVICE, Audiences: []string{audience}, DelegatesTo: []string{"billing"}})
	if err != nil {
		return nil, "", err
	}
	s, err := store.Open(ctx, w.uri)
	if err != nil {
		return nil, "", err
	}
	defer s.Close()
	keys := tokens.NewKeySet(w.master, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err := keys.Load(ctx, s); err != nil {
		return nil, "", err
	}
	mint := tokens.New(s, keys, "http://127.0.0.1:8080", "", lifetime)
	of := func(id, session, audience string) (tokens.Subject, error) {
		var row *store.User
		err := s.Read(ctx, func(tx *store.Tx) (err error) {
			row, err = tx.User(id)
			return err
		})
		return tokens.Subject{UserID: id, Username: row.Username, Roles: row.Roles, Version: row.TokenVersion(), SessionID: session, Audience: []string{audience}}, err
	}
	service, err := of(made.GetUser().GetId(), "", "watchword")
	if err != nil {
		return nil, "", err
	}
	if front, _, err = mint.Mint(ctx, time.Now(), service); err != nil {
		return nil, "", err
	}
	var admin string
	if err := s.Read(ctx, func(tx *store.Tx) error {
		row, err := tx.UserByName("admin")
		admin = row.ID
		return err
	}); err != nil {
		return nil, "", err
	}
	user, err := of(admin, pair.GetSessionId(), audience)
	if err != nil {
		return nil, "", err
	}
	for range n {
		raw, _, err := mint.Mint(ctx, time.Now(), user)
		if err != nil {
			return nil, "", err
		}
		subjects = append(subjects, raw)
	}
	return subjects, front, nil
}
