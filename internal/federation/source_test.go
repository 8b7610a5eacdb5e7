package federation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// pipes is an issuer behind TLS over pipes in memory, for the clock of a bubble.
type pipes struct {
	certificate tls.Certificate
	handler     atomic.Value // func(http.ResponseWriter, *http.Request)
	away        atomic.Bool  // true: dial fails
	fetches     atomic.Int64
	conns       chan net.Conn
}

// inBubble runs a test with an issuer in a bubble. By default the issuer serves one key.
func inBubble(t *testing.T, test func(t *testing.T, p *pipes)) {
	jwks(t, 3) // the keys are made outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), DNSNames: []string{"issuer.test"}, NotBefore: time.Now(), NotAfter: time.Now().Add(1000 * time.Hour),
			IsCA: true, BasicConstraintsValid: true,
		}
		raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		p := &pipes{certificate: tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, conns: make(chan net.Conn)}
		p.serve(jwks(t, 1))
		server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			p.fetches.Add(1)
			p.handler.Load().(func(http.ResponseWriter, *http.Request))(rw, r)
		})}
		go func() {
			_ = server.Serve(tls.NewListener(p, &tls.Config{Certificates: []tls.Certificate{p.certificate}}))
		}()
		t.Cleanup(func() {
			_ = server.Close()
			time.Sleep(time.Minute) // both ends of a pipe wait for seconds to say goodbye
		})
		test(t, p)
	})
}

func (p *pipes) serve(set []byte) {
	p.handler.Store(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(set) })
}

// Accept, Close and Addr make a listener of the pipes.
func (p *pipes) Accept() (net.Conn, error) {
	conn, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p *pipes) Close() error   { close(p.conns); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	if p.away.Load() {
		return nil, errors.New("no route to host")
	}
	client, server := net.Pipe()
	p.conns <- server
	return client, nil
}

func (p *pipes) row() *store.Issuer {
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.certificate.Certificate[0]}))
	return &store.Issuer{Name: "cluster", Issuer: "https://issuer.test", JwksURI: "https://issuer.test/jwks", CAPEM: ca, MaxLifetime: time.Hour}
}

// start runs a source for the issuer, until the end of the test.
func (p *pipes) start(t *testing.T) *source {
	s := newSource(p.row(), &tally{}, p.dial, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	s.awaitFirst(ctx)
	return s
}

// ask asks for a kid, and checks that the call takes no time. ask returns the time to wait;
// -1 for a kid that the issuer lacks.
func ask(t *testing.T, s *source, kid string) (found bool, after time.Duration) {
	t.Helper()
	began := time.Now()
	key, err := s.key(token.Foreign{Issuer: "https://issuer.test", Algorithm: "ES256", KID: kid})
	if took := time.Since(began); took != 0 {
		t.Errorf("asking for %s took %v", kid, took)
	}
	var away *Unavailable
	switch {
	case err == nil:
		return key != nil, 0
	case errors.As(err, &away):
		return false, away.After
	case errors.Is(err, ErrInvalid):
		return false, -1
	}
	t.Fatal(err)
	return false, 0
}

// While an issuer is away for an hour, the known keys count and no call waits. When the issuer
// is back, a new key is found within the time that the clients were told. After a day the keys
// count no more.
func TestAnIssuerIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pipes) {
		s := p.start(t)
		p.away.Store(true)
		p.serve(jwks(t, 2)) // the issuer has rotated
		for range 60 {
			time.Sleep(time.Minute)
			if found, _ := ask(t, s, "k0"); !found {
				t.Fatal("the known key is gone")
			}
			if found, after := ask(t, s, "k1"); found || after <= 0 || after > fetchPause+arrival {
				t.Fatalf("the new key: %v, retry after %v", found, after)
			}
		}
		if f := s.fetchedNow(); f.Err == nil || len(f.KIDs) != 1 {
			t.Errorf("while away: %+v", f)
		}
		p.away.Store(false)
		_, after := ask(t, s, "k1")
		time.Sleep(after)
		if found, _ := ask(t, s, "k1"); !found {
			t.Error("the new key is not found after the time that the client was told")
		}

		p.away.Store(true)
		time.Sleep(keepKeys - time.Minute)
		if found, _ := ask(t, s, "k0"); !found {
			t.Error("the keys count for less than a day")
		}
		time.Sleep(refreshEvery)
		if found, after := ask(t, s, "k0"); found || after <= 0 {
			t.Errorf("after a day without the issuer: %v, %v", found, after)
		}
		p.away.Store(false)
		time.Sleep(fetchPause + arrival)
		if found, _ := ask(t, s, "k0"); !found {
			t.Error("the keys are not back")
		}
	})
}

// An issuer that answers with a key set without keys is not treated as away, but as an issuer
// that has withdrawn its keys. An answer that is no key set, such as the page of a proxy,
// withdraws nothing.
func TestAnIssuerWithdrawsEveryKey(t *testing.T) {
	useless := setOf(t, jwkOf(t, &ecKey(t, elliptic.P256()).PublicKey).with(members{"kid": "k0", "use": "enc"}))
	for _, withdrawn := range [][]byte{[]byte(`{"keys":[]}`), useless} {
		inBubble(t, func(t *testing.T, p *pipes) {
			s := p.start(t)
			p.serve([]byte("<html>"))
			time.Sleep(refreshEvery)
			if found, _ := ask(t, s, "k0"); !found {
				t.Error("a page in place of the key set has withdrawn the key")
			}
			p.serve(withdrawn)
			time.Sleep(fetchPause + arrival)
			found, after := ask(t, s, "k0")
			if found || after <= 0 {
				t.Errorf("after %s: %v, %v", withdrawn, found, after)
			}
			if f := s.fetchedNow(); f.Err == nil || len(f.KIDs) != 0 {
				t.Errorf("after %s: %+v", withdrawn, f)
			}
			time.Sleep(after)
			if _, after := ask(t, s, "k0"); after != -1 {
				t.Errorf("a fetch after the question for k0: %v", after)
			}
			p.serve(jwks(t, 1))
			time.Sleep(fetchPause + arrival)
			if found, _ := ask(t, s, "k0"); !found {
				t.Error("the key is not back")
			}
		})
	}
}

// The error text of a failed fetch is bounded: an issuer chooses the names in its certificate.
func TestTheErrorOfAFetchIsBounded(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: slices.Repeat([]string{strings.Repeat(strings.Repeat("a", 60)+".", 4) + "test"}, 99),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}
	server.StartTLS()
	defer server.Close()
	row := &store.Issuer{Name: "web", JwksURI: strings.Replace(server.URL, "127.0.0.1", "localhost", 1), CAPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))}
	s := newSource(row, &tally{}, dialer(true), slog.New(slog.DiscardHandler))
	s.refresh(t.Context())
	if err := s.fetchedNow().Err; err == nil || !strings.Contains(err.Error(), "aaaa") || len(err.Error()) > 2*maxError {
		t.Errorf("an error of %d bytes: %.100v", len(fmt.Sprint(err)), err)
	}
}

// A forger asks for ten thousand unknown kids in two minutes. There are as many fetches as the
// documents say, one in ten seconds. A new key of the issuer is still accepted after ten
// seconds, and a withdrawn key is refused. A kid that no key of the issuer has is refused as
// unknown after one fetch, unless the forger has already used up the fetch of these ten seconds.
func TestUnknownKIDs(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pipes) {
		s := p.start(t)
		_, _ = ask(t, s, "k1") // k1 is a key that the issuer publishes later
		if found, after := ask(t, s, "honest"); found || after <= 0 {
			t.Errorf("an unknown kid: %v, %v", found, after)
		} else if time.Sleep(after); true {
			if _, after := ask(t, s, "honest"); after != -1 {
				t.Errorf("an unknown kid after the fetch: %v", after)
			}
			p.serve(jwks(t, 2))
			_, _ = ask(t, s, "k1")
			time.Sleep(fetchPause + arrival)
			if found, _ := ask(t, s, "k1"); !found {
				t.Error("a key that is published after a fetch has missed it is not found")
			}
			if _, after := ask(t, s, "honest"); after != -1 {
				t.Errorf("an unknown kid after two fetches: %v", after)
			}
			p.serve(jwks(t, 1))
			time.Sleep(refreshEvery)
		}
		time.Sleep(time.Minute)
		before := p.fetches.Load()
		const kids, minutes = 10_000, 2
		for i := range kids {
			if found, after := ask(t, s, fmt.Sprint("forged ", i)); found || after == 0 || after > fetchPause+arrival {
				t.Fatalf("a forged kid: %v, %v", found, after)
			}
			time.Sleep(minutes * time.Minute / kids)
			if i == kids/2 {
				p.handler.Store(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(jwksOf(t, 1, 3)) })
				_, after := ask(t, s, "k1")
				time.Sleep(after)
				if found, _ := ask(t, s, "k1"); !found {
					t.Error("the forger keeps the new key out")
				}
				if found, _ := ask(t, s, "k0"); found {
					t.Error("the withdrawn key still counts")
				}
			}
		}
		if n := p.fetches.Load() - before; n < 10 || n > minutes*60/10+3 {
			t.Errorf("%d fetches in two minutes", n)
		}
		if len(s.asked) > maxAsked || len(s.missed) > maxAsked {
			t.Errorf("%d and %d kids are remembered", len(s.asked), len(s.missed))
		}
	})
}

// Calls wait for the first fetch of an issuer's keys, and for no later fetch, also if the first
// fetch fails.
func TestTheFirstFetch(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pipes) {
		p.handler.Store(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		began := time.Now()
		s := p.start(t) // waits as a call does
		if took := time.Since(began); took != firstWait || !s.unfinished() {
			t.Errorf("waited for %v", took)
		}
		time.Sleep(fetchTime)
		if _, after := ask(t, s, "k0"); after <= 0 || s.unfinished() {
			t.Errorf("after the first fetch: %v", after)
		}
		p.serve(jwks(t, 1))
		time.Sleep(fetchPause + arrival)
		if found, _ := ask(t, s, "k0"); !found {
			t.Error("the key is not found")
		}
	})
}

// An issuer with its key set in the database needs no fetch, and an unknown kid is refused at
// once.
func TestKeysOfTheRow(t *testing.T) {
	jwks(t, 1)
	synctest.Test(t, testKeysOfTheRow)
}

func testKeysOfTheRow(t *testing.T) {
	s := newSource(&store.Issuer{Name: "ci", Issuer: "https://issuer.test", Jwks: string(jwks(t, 1))}, &tally{}, nil, slog.New(slog.DiscardHandler))
	if found, _ := ask(t, s, "k0"); !found || s.unfinished() {
		t.Error("the key of the row is not found")
	}
	if found, after := ask(t, s, "k1"); found || after != -1 {
		t.Errorf("an unknown kid: %v, %v", found, after)
	}
	if _, err := s.key(token.Foreign{Algorithm: "EdDSA", KID: "k0"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("another algorithm: %v", err)
	}
}
