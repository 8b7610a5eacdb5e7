//go:build unix

package server_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// leastExchange holds the least parts of an exchange. Of the code of this project, the parts run
// only the generated messages.
type leastExchange struct {
	watchwordv1.UnimplementedAuthServiceServer
	client    watchwordv1.AuthServiceClient
	answer    *watchwordv1.ExchangeTokenResponse
	input     []byte // the signed part of the assertion
	signature []byte
	public    *rsa.PublicKey
	private   ed25519.PrivateKey
	rows      *leastRows // a table with a primary key alone
	findable  *leastRows // a table in which the record finds a row by account and by type, too
}

// leastRows is a table of rows as long as the record of an exchange.
type leastRows struct {
	db      *sql.DB
	waiting chan chan error // each waits for the commit of its row
}

// ExchangeToken is a bare unary call, with messages of the sizes of an exchange.
func (l *leastExchange) ExchangeToken(context.Context, *watchwordv1.ExchangeTokenRequest) (*watchwordv1.ExchangeTokenResponse, error) {
	return l.answer, nil
}

func (l *leastExchange) check() error {
	sum := sha256.Sum256(l.input)
	return rsa.VerifyPKCS1v15(l.public, crypto.SHA256, sum[:], l.signature)
}

func newLeastRows(b *testing.B, indexes string) *leastRows {
	b.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "least.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`CREATE TABLE record (id TEXT PRIMARY KEY, type TEXT, success INTEGER, user_id TEXT, user_name TEXT, source TEXT, detail TEXT);` + indexes); err != nil {
		b.Fatal(err)
	}
	r := &leastRows{db: db, waiting: make(chan chan error, 64)}
	wrote := make(chan struct{})
	go func() { r.write(); close(wrote) }()
	b.Cleanup(func() { close(r.waiting); <-wrote; db.Close() })
	return r
}

func (r *leastRows) commit() error {
	done := make(chan error, 1)
	r.waiting <- done
	return <-done
}

// write inserts a row for each caller that waits, all in one commit that is on the disk.
func (r *leastRows) write() {
	n := 0
	for first := range r.waiting {
		waiting := []chan error{first}
		for more := true; more; {
			select {
			case next := <-r.waiting:
				waiting = append(waiting, next)
			default:
				more = false
			}
		}
		tx, err := r.db.Begin()
		for range waiting {
			if n++; err == nil {
				_, err = tx.Exec(`INSERT INTO record VALUES (?, 'token.exchanged', 1, ?, 'service-0000', '127.0.0.1', 'issuer ci, subject service-0000')`,
					fmt.Sprintf("%028x", n), fmt.Sprintf("%016x", n*7919%exchangeAccounts))
			}
		}
		if err == nil {
			err = tx.Commit()
		}
		for _, done := range waiting {
			done <- err
		}
	}
}

func newLeastExchange(b *testing.B, assertion string, answer *watchwordv1.ExchangeTokenResponse) *leastExchange {
	b.Helper()
	key := foreignKey(b, "RS256").(*rsa.PrivateKey)
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	l := &leastExchange{answer: answer, input: []byte(assertion), public: &key.PublicKey, private: private, rows: newLeastRows(b, "")}
	l.findable = newLeastRows(b, `CREATE INDEX by_user ON record (user_id, id); CREATE INDEX by_type ON record (type, id)`)
	sum := sha256.Sum256(l.input)
	if l.signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:]); err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer()
	watchwordv1.RegisterAuthServiceServer(srv, l)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	conn := dialBench(b, listener.Addr().String())
	l.client = watchwordv1.NewAuthServiceClient(conn)
	b.Cleanup(func() {
		conn.Close()
		srv.Stop()
		<-served
	})
	return l
}

// populateExchanges makes an issuer and the given number of accounts, and returns each
// assertions for every account.
func populateExchanges(b *testing.B, database string, accounts, each int) (assertions []string) {
	b.Helper()
	f := newForeign(b, "ci", "https://ci.test", "RS256")
	s, err := store.Open(b.Context(), "sqlite:"+database)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	err = feed.Direct(s).Write(b.Context(), func(tx *feed.Tx) error {
		own, err := tx.Setting(store.OwnIssuer)
		if err == nil {
			err = tx.InsertIssuer(&store.Issuer{Name: f.name, Issuer: f.iss, Jwks: f.jwks(b), MaxLifetime: 24 * time.Hour, CreatedAt: tx.Now(), UpdatedAt: tx.Now()})
		}
		for i := 0; i < accounts && err == nil; i++ {
			name := fmt.Sprintf("service-%04d", i)
			u := &store.User{ID: user.NewID(), Kind: store.KindService, Username: name, Roles: []string{"writer"}, Version: tx.Now().Unix(), CreatedAt: tx.Now(), UpdatedAt: tx.Now()}
			if err = tx.InsertUser(u); err == nil {
				err = tx.InsertBinding(&store.Binding{ID: user.NewID(), Issuer: f.name, Subject: name, UserID: u.ID, CreatedAt: tx.Now()})
			}
			for n := range each {
				assertions = append(assertions, f.sign(b, "RS256", f.claims(own, name).with(jsonObject{"exp": time.Now().Add(10*time.Hour).Unix() + int64(n)})))
			}
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return assertions
}

// processTime returns the CPU time of this process, of client and server together.
func processTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// exchanging returns a call that exchanges one assertion after the other.
func exchanging(auth watchwordv1.AuthServiceClient, assertions []string) func(int) error {
	var next atomic.Int64
	return func(int) error {
		_, err := auth.ExchangeToken(context.Background(), &watchwordv1.ExchangeTokenRequest{SubjectToken: assertions[int(next.Add(1))%len(assertions)]})
		return err
	}
}

// exchangeAccounts is the number of accounts whose exchanges are measured.
const exchangeAccounts = 2000

// BenchmarkExchange is an exchange over loopback, beside the sum of the least parts that it is
// made of: a bare unary call, one check of a signature (RS256), one signature (EdDSA), and one
// commit of one row that callers share. The parts are measured in turns with the exchange.
// The accounts are many, so that each exchange inserts a record.
//
// The record lists the events of an account and of a type, so the record needs two indexes. The
// figure "of-parts-with-indexes" compares with parts of which the row has these indexes, too.
//
// "again" exchanges assertions that the server remembers, and "first" so many others that the
// server has forgotten each when it comes again.
func BenchmarkExchange(b *testing.B) {
	auth, _, database := serveBench(b)
	// The server remembers some 1,100 to 2,200 of these short assertions (see seenBytes in
	// internal/federation/seen.go): all 700 of "again", and half of the 5,200 of "first" at most.
	const each, remembered = 4, 700 * 4
	assertions := populateExchanges(b, database, exchangeAccounts, each)
	var again []string
	for i := 0; i < remembered; i += each {
		again = append(again, assertions[i])
	}
	for _, kind := range []struct {
		name string
		call func(int) error
	}{{"first", exchanging(auth, assertions[remembered:])}, {"again", exchanging(auth, again)}} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", kind.name, callers), func(b *testing.B) {
				benchmarkExchange(b, auth, assertions[0], callers, kind.call)
			})
		}
	}
}

func benchmarkExchange(b *testing.B, auth watchwordv1.AuthServiceClient, assertion string, callers int, exchange func(int) error) {
	answer, err := auth.ExchangeToken(b.Context(), &watchwordv1.ExchangeTokenRequest{SubjectToken: assertion})
	if err != nil {
		b.Fatal(err)
	}
	l := newLeastExchange(b, assertion, &watchwordv1.ExchangeTokenResponse{AccessToken: answer.GetAccessToken(), TokenType: "Bearer", ExpiresIn: durationpb.New(time.Minute)})
	claims := []byte(answer.GetAccessToken())
	const indexed = "commit-with-indexes"
	parts := map[string]func(int) error{
		"call": func(int) error {
			_, err := l.client.ExchangeToken(context.Background(), &watchwordv1.ExchangeTokenRequest{SubjectToken: assertion})
			return err
		},
		"check":  func(int) error { return l.check() },
		"sign":   func(int) error { ed25519.Sign(l.private, claims); return nil },
		"commit": func(int) error { return l.rows.commit() },
		indexed:  func(int) error { return l.findable.commit() },
	}
	measure := func(s *side, cpu *time.Duration, stint time.Duration, call func(int) error) {
		began := processTime(b)
		s.run(b, stint, callers, call)
		*cpu += processTime(b) - began
	}
	var ours side
	var cpu time.Duration
	limits, cpus := map[string]*side{}, map[string]*time.Duration{}
	for name := range parts {
		limits[name], cpus[name] = &side{}, new(time.Duration)
	}
	b.ResetTimer()
	for range b.N {
		measure(&ours, &cpu, stint, exchange)
		for name, part := range parts {
			measure(limits[name], cpus[name], stint/2, part)
		}
	}
	took, tookCPU := map[string]float64{}, map[string]float64{} // the µs of a call
	sum, sumCPU := 0.0, 0.0
	for name, part := range limits {
		took[name], tookCPU[name] = 1e6/part.rate(), cpus[name].Seconds()*1e6/float64(part.calls)
		b.ReportMetric(took[name], name+"-µs")
		b.ReportMetric(tookCPU[name], name+"-cpu-µs")
		if name != indexed {
			sum += took[name]
			sumCPU += tookCPU[name]
		}
	}
	exchangeCPU := cpu.Seconds() * 1e6 / float64(ours.calls)
	b.ReportMetric(exchangeCPU, "exchange-cpu-µs")
	b.ReportMetric(exchangeCPU/sumCPU, "cpu-of-parts(<=1.3)")
	b.ReportMetric(exchangeCPU/(sumCPU-tookCPU["commit"]+tookCPU[indexed]), "cpu-of-parts-with-indexes")
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.rate(), "exchanges/s")
	b.ReportMetric(1e6/ours.rate(), "exchange-µs")
	b.ReportMetric(1e6/ours.rate()/sum, "of-parts(<=1.3)")
	b.ReportMetric(1e6/ours.rate()/(sum-took["commit"]+took[indexed]), "of-parts-with-indexes")
	b.ReportMetric(ours.quantile(0.5), "p50-ms")
	b.ReportMetric(ours.quantile(0.99), "p99-ms")
	b.ReportMetric(float64(ours.bytes)/float64(ours.calls), "disk-bytes/exchange")
}
