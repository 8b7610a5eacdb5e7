package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// evidence keeps everything that the programs of the suite leave behind or answer: logs,
// printed text, database files, tables, metrics and errors. After the last test, [search]
// looks for every secret of every test in it.
//
// Left out is what holds secrets on purpose: the answers to successful calls (tokens), the
// output of `watchword login` and of grpcurl, the output of a first start (the password of
// the first admin) and the file of --initial-password-file, and files of master keys.
//
// The evidence is in a file, and the same bytes are kept once, so that memory stays small.
type evidence struct {
	piece   int64      // bytes that the search reads at a time
	mu      sync.Mutex // guards the fields below
	file    *os.File
	size    int64
	seen    map[[sha256.Size]byte]bool
	exhibit []exhibit
	kept    map[string]int // the number of exhibits by kind; equal ones count again
}

// exhibit is a part of the file of evidence: a text that a server has answered, logged or
// stored.
type exhibit struct {
	kind, name string
	at, size   int64
}

// left is the evidence of all tests.
var left *evidence

// kindsOfEvidence must all be there after a run of all tests: otherwise the search would
// find nothing because it searched nothing.
var kindsOfEvidence = []string{"log", "output", "SQLite file", "PostgreSQL table", "PostgreSQL log", "HTTP page", "error"}

func newEvidence(dir string) (*evidence, error) {
	file, err := os.Create(filepath.Join(dir, "evidence"))
	return &evidence{piece: 1 << 20, file: file, seen: map[[sha256.Size]byte]bool{}, kept: map[string]int{}}, err
}

// keep adds what a test has found. A full disk ends the tests.
func (e *evidence) keep(kind, name string, data []byte) {
	if len(data) == 0 {
		return
	}
	sum := sha256.Sum256(data)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept[kind]++
	if e.seen[sum] {
		return
	}
	e.seen[sum] = true
	if _, err := e.file.WriteAt(data, e.size); err != nil {
		panic(fmt.Sprintf("keeping evidence: %v", err))
	}
	e.exhibit = append(e.exhibit, exhibit{kind, name, e.size, int64(len(data))})
	e.size += int64(len(data))
}

// search returns an error for each exhibit that holds a secret.
func (e *evidence) search(secrets *secretSet) error {
	errs := make([]error, len(e.exhibit))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			buffer := make([]byte, e.piece+64) // the pieces overlap, so that no secret is cut
			for {
				i := int(next.Add(1)) - 1
				if i >= len(e.exhibit) {
					return
				}
				errs[i] = e.searchIn(e.exhibit[i], secrets, buffer)
			}
		})
	}
	workers.Wait()
	return errors.Join(errs...)
}

// searchIn returns an error for each secret in an exhibit.
func (e *evidence) searchIn(x exhibit, secrets *secretSet, buffer []byte) error {
	found := map[string]bool{}
	for at := int64(0); at < x.size; at += e.piece {
		n, err := e.file.ReadAt(buffer[:min(int64(len(buffer)), x.size-at)], x.at+at)
		if err != nil && err != io.EOF {
			return err
		}
		for _, what := range secrets.find(buffer[:n]) {
			found[what] = true
		}
	}
	var errs []error
	for what := range found {
		errs = append(errs, fmt.Errorf("%s: %s: %s", x.kind, x.name, what))
	}
	return errors.Join(errs...)
}

// kinds returns the number of exhibits of each kind.
func (e *evidence) kinds() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.kept)
}

// judge searches the evidence after the last test, writes the findings, and returns the exit
// status of the tests.
func (e *evidence) judge(code int) int {
	began := time.Now()
	if err := e.search(secrets); err != nil {
		fmt.Fprintf(os.Stderr, "FAIL: secrets of the tests were found:\n%v\n", err)
		code = max(code, 1)
	}
	fmt.Printf("searched %v, %d MB in all, for %d secrets in %v\n", e.kinds(), e.size>>20, secrets.size(), time.Since(began).Round(time.Millisecond))
	if code == 0 && !testing.Short() && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == "" {
		for _, kind := range kindsOfEvidence {
			if e.kinds()[kind] == 0 {
				fmt.Fprintf(os.Stderr, "FAIL: the search had no %s to search\n", kind)
				code = 1
			}
		}
	}
	return code
}

// keepFolder keeps the database files in a server's folder, and notes the master keys there.
func keepFolder(t *testing.T, dir string) {
	entries, _ := os.ReadDir(dir) // the test may have removed it
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch name := entry.Name(); {
		case strings.Contains(name, "-key"):
			noteMasterKeys(path)
		case strings.Contains(name, ".db") && entry.Type().IsRegular():
			if data, err := os.ReadFile(path); err == nil { // a log may go at any time
				left.keep("SQLite file", t.Name()+": "+name, data)
			}
		}
	}
}

// noteMasterKeys notes the keys in a master key file.
func noteMasterKeys(path string) {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "wwmk1_") {
			noteSecret(strings.TrimSpace(line))
		}
	}
}

// pages has a short timeout: a test may have frozen the server.
var pages = http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
	DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
}}

// keepPages keeps what a running server shows over HTTP.
func (s *server) keepPages(t *testing.T) {
	if s.httpAddr == "" {
		return
	}
	for _, page := range []string{"/metrics", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/readyz"} {
		for _, scheme := range []string{"http", "https"} {
			resp, err := pages.Get(scheme + "://" + s.httpAddr + page)
			if err != nil {
				continue // the test has stopped the server, or the other scheme is right
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			left.keep("HTTP page", t.Name()+": "+page, body)
		}
	}
}

// keepTables keeps all rows of a PostgreSQL database, if the test has left the database
// running.
func keepTables(t *testing.T, uri string) {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		return
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'`)
	if err != nil {
		return
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, table := range tables {
		var text strings.Builder
		if _, err := conn.PgConn().CopyTo(ctx, &text, "COPY "+table+" TO STDOUT"); err != nil {
			t.Errorf("reading the table %s: %v", table, err)
		}
		left.keep("PostgreSQL table", t.Name()+": "+table, []byte(text.String()))
	}
	if err != nil {
		t.Errorf("listing the tables: %v", err)
	}
}

// keepDatabase calls keepTables at the end of the test, before the database goes.
func keepDatabase(t *testing.T, uri func() string) {
	t.Cleanup(func() { keepTables(t, uri()) })
	if u, err := url.Parse(uri()); err == nil {
		password, _ := u.User.Password()
		noteSecret(password)
	}
}

// keepErrors are the options of a connection that keep the errors of calls, with details.
func keepErrors() []grpc.DialOption {
	keep := func(method string, err error) {
		if err == nil || err == io.EOF {
			return
		}
		s, _ := status.FromError(err)
		details, _ := proto.Marshal(s.Proto())
		left.keep("error", method, append(details, err.Error()...))
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, conn, opts...)
			keep(method, err)
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err != nil {
				keep(method, err)
				return nil, err
			}
			return keptStream{stream, func(err error) { keep(method, err) }}, nil
		}),
	}
}

// keptStream keeps the error that ends a stream.
type keptStream struct {
	grpc.ClientStream
	keep func(error)
}

func (s keptStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.keep(err)
	return err
}
