package server_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

// Benchmarks count rounds: in each, what is measured and its limit run one after
// the other for a stint, so that both see the same machine.
const (
	stint     = time.Second
	longStint = 2 * time.Second // longer for hashes: few hashes fit into a short stint
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

// writtenBytes returns the number of bytes that this process has caused to be written to a disk.
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

// BenchmarkLogin measures logins over loopback, as many at a time as the pool hashes, beside
// argon2id alone.
func BenchmarkLogin(b *testing.B) {
	auth, adminPassword, database := serveBench(b)
	assertParameters(b, database)
	parallel := max(1, runtime.GOMAXPROCS(0)-1) // the number of hashes that the pool runs at a time
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

// assertParameters reads the parameters of the stored hash: with cheap parameters, any figure
// could be reached.
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
