package server_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// Benchmarks count rounds: in each, what is measured and its limit run one after
// the other for a stint, so that both see the same machine.
const (
	stint     = time.Second
	longStint = 2 * time.Second // of hashes, of which a short one would hold few
)

// side is one of two that are compared.
type side struct {
	calls int
	spent time.Duration
	took  []time.Duration
	bytes int64 // written to the disk
}

// run lets callers call for a stint.
func (s *side) run(b *testing.B, stint time.Duration, callers int, call func(caller int) error) {
	b.Helper()
	took := make([][]time.Duration, callers)
	began, written := time.Now(), writtenBytes(b)
	var tasks sync.WaitGroup
	for c := range callers {
		tasks.Go(func() {
			for time.Since(began) < stint {
				start := time.Now()
				if err := call(c); err != nil {
					b.Error(err)
					return
				}
				took[c] = append(took[c], time.Since(start))
			}
		})
	}
	tasks.Wait()
	s.spent += time.Since(began)
	s.bytes += writtenBytes(b) - written
	for _, t := range took {
		s.calls += len(t)
		s.took = append(s.took, t...)
	}
}

func (s *side) rate() float64 { return float64(s.calls) / s.spent.Seconds() }

func (s *side) quantile(q float64) float64 {
	slices.Sort(s.took)
	return float64(s.took[int(q*float64(len(s.took)-1))].Microseconds()) / 1000
}

// writtenBytes is what this process has caused to be written to a disk.
func writtenBytes(b *testing.B) (n int64) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Skipf("this system does not count written bytes: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "write_bytes: %d", &n); err == nil {
			return n
		}
	}
	b.Fatalf("no write_bytes in %s", text)
	return 0
}

// serveBench runs a real server on a real database, and returns a client.
func serveBench(b *testing.B) (auth watchwordv1.AuthServiceClient, password, database string) {
	b.Helper()
	cfg := config(b.TempDir())
	var adminPassword strings.Builder
	srv, err := server.New(b.Context(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)), announceTo(&adminPassword))
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- srv.Run(ctx) }()
	conn := dialBench(b, srv.GRPCAddr())
	b.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-ran; err != nil {
			b.Error(err)
		}
		if err := srv.Close(); err != nil {
			b.Error(err)
		}
	})
	return watchwordv1.NewAuthServiceClient(conn), adminPassword.String(), strings.TrimPrefix(cfg.DatastoreURI, "sqlite:")
}

func dialBench(b *testing.B, addr string) *grpc.ClientConn {
	b.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	return conn
}

// bare is the least that a refresh could be: one update of one row, with the same
// driver and durability, the same sharing of commits, and one signature.
type bare struct {
	watchwordv1.UnimplementedAuthServiceServer
	store *store.Store
	key   *token.SigningKey
	pair  *watchwordv1.TokenPair
}

func (s *bare) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		return tx.AdvanceSession(req.GetRefreshToken(), store.Generations{Current: tx.Now().UnixMicro(), SpentAt: tx.Now(), LateAt: tx.Now()})
	})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	access, err := token.Sign(s.key, &token.Claims{
		Issuer: "http://127.0.0.1:8080", Subject: "AAAAAAAAAAAAAAAA", ID: "AAAAAAAAAAA", SessionID: req.GetRefreshToken(), Username: "admin",
		Audience: audiences, Roles: []string{"admin"}, IssuedAt: now, ExpiresAt: now.Add(5 * time.Minute), Version: now.Unix(),
	})
	return &watchwordv1.RefreshResponse{Tokens: &watchwordv1.TokenPair{
		AccessToken: access, RefreshToken: s.pair.GetRefreshToken(), TokenType: "Bearer", SessionId: s.pair.GetSessionId(),
		ExpiresIn: durationpb.New(time.Minute), RefreshExpiresIn: durationpb.New(time.Hour),
	}}, err
}

// serveBare runs the least server, with so many sessions.
func serveBare(b *testing.B, pair *watchwordv1.TokenPair, ids []string) watchwordv1.AuthServiceClient {
	b.Helper()
	s, err := store.Open(b.Context(), "sqlite:"+filepath.Join(b.TempDir(), "bare.db"))
	if err != nil {
		b.Fatal(err)
	}
	err = s.Write(b.Context(), func(tx *store.Tx) error {
		for _, id := range ids {
			if err := tx.InsertSession(&store.Session{ID: id, UserID: "AAAAAAAAAAAAAAAA", Audience: audiences, CreatedAt: tx.Now(), RefreshedAt: tx.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer()
	watchwordv1.RegisterAuthServiceServer(srv, &bare{store: s, key: key, pair: pair})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	conn := dialBench(b, listener.Addr().String())
	b.Cleanup(func() {
		conn.Close()
		srv.Stop()
		<-served
		s.Close()
	})
	return watchwordv1.NewAuthServiceClient(conn)
}

// BenchmarkRefresh is a refresh over loopback, beside the least that it could be.
func BenchmarkRefresh(b *testing.B) {
	const most = 64
	auth, adminPassword, _ := serveBench(b)
	pairs, ids := make([]*watchwordv1.TokenPair, most), make([]string, most)
	for i := range pairs {
		resp, err := auth.Login(b.Context(), &watchwordv1.LoginRequest{Username: "admin", Password: adminPassword})
		if err != nil {
			b.Fatal(err)
		}
		pairs[i], ids[i] = resp.GetTokens(), fmt.Sprintf("session-%08d", i)
	}
	least := serveBare(b, pairs[0], ids)
	var alone float64
	for _, callers := range []int{1, most} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			var ours, limit side
			for range b.N {
				ours.run(b, stint, callers, func(c int) error {
					resp, err := auth.Refresh(context.Background(), &watchwordv1.RefreshRequest{RefreshToken: pairs[c].GetRefreshToken()})
					if err == nil {
						pairs[c] = resp.GetTokens()
					}
					return err
				})
				limit.run(b, stint, callers, func(c int) error {
					_, err := least.Refresh(context.Background(), &watchwordv1.RefreshRequest{RefreshToken: ids[c]})
					return err
				})
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours.rate(), "refreshes/s")
			b.ReportMetric(ours.rate()/limit.rate(), "of-limit(>=0.8)")
			b.ReportMetric(ours.quantile(0.5), "p50-ms")
			b.ReportMetric(ours.quantile(0.99), "p99-ms")
			b.ReportMetric(ours.quantile(1), "max-ms")
			b.ReportMetric(limit.quantile(0.99), "limit-p99-ms")
			b.ReportMetric(float64(ours.bytes)/float64(ours.calls), "disk-bytes/refresh")
			b.ReportMetric(float64(limit.bytes)/float64(limit.calls), "limit-disk-bytes")
			if callers == 1 {
				alone = ours.rate()
			} else if alone > 0 {
				b.ReportMetric(ours.rate()/alone, "times-one-caller")
			}
		})
	}
}

// BenchmarkLogin is logins over loopback, as many at a time as the pool hashes,
// beside argon2id by itself.
func BenchmarkLogin(b *testing.B) {
	auth, adminPassword, database := serveBench(b)
	assertParameters(b, database)
	parallel := max(1, runtime.GOMAXPROCS(0)-1) // what the pool hashes at a time
	var ours, limit side
	for range b.N {
		// Two callers for each hash that runs, so that the pool is never idle.
		ours.run(b, longStint, 2*parallel, func(int) error {
			_, err := auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: "admin", Password: adminPassword})
			return err
		})
		limit.run(b, longStint, parallel, func(int) error {
			argon2.IDKey([]byte(adminPassword), make([]byte, 16), 2, 19456, 1, 32)
			return nil
		})
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.rate(), "logins/s")
	b.ReportMetric(ours.rate()/limit.rate(), "of-argon2id(>=0.95)")
	b.ReportMetric(ours.quantile(0.99), "p99-ms")
	b.ReportMetric(float64(ours.bytes)/float64(ours.calls), "disk-bytes/login")
}

// assertParameters reads the parameters of the hash that is compared with: cheap
// ones would make any figure.
func assertParameters(b *testing.B, database string) {
	b.Helper()
	s, err := store.Open(b.Context(), "sqlite:"+database)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	err = s.Read(b.Context(), func(tx *store.Tx) error {
		admin, err := tx.UserByName("admin")
		if err == nil && !strings.HasPrefix(admin.PasswordHash, "$argon2id$v=19$m=19456,t=2,p=1$") {
			b.Fatalf("the stored hash is %.40s…", admin.PasswordHash)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}
