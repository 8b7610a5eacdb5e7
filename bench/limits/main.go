// Command limits does one part of a refresh or of a login, and nothing else. The bench compares a
// refresh of Watchword with the sum of the parts, and a login with the hash. The command shares no
// code with Watchword.
//
//	limits call SIZE           serves a gRPC method without interceptors; the answers have SIZE bytes
//	limits sign                makes signatures, Ed25519
//	limits argon2id            makes hashes of a password, with the parameters of OWASP
//	limits sqlite FILE         updates rows of a new table, in shared durable commits
//	limits postgres URI POOL   updates rows of a new table, over a pgx pool with POOL connections
//
// When the command is ready, it prints a line: the address of the gRPC server, or "ready". For
// each further line "CALLERS MILLISECONDS" on standard input, the command lets so many callers
// do the part for so long, and prints the number of calls a second, and the number of calls.
package main

import (
	"bufio"
	"crypto/ed25519"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("limits: ")
	var do func() error
	var err error
	switch name, args := os.Args[1], os.Args[2:]; name {
	case "call":
		err = serve(args[0])
	case "sign":
		do, err = signatures()
	case "argon2id":
		do = hashes
	case "sqlite":
		do, err = sqliteUpdates(args[0])
	case "postgres":
		do, err = postgresUpdates(args[0], args[1])
	default:
		log.Fatal("unknown part ", name)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var callers, milliseconds int
		if _, err := fmt.Sscan(lines.Text(), &callers, &milliseconds); err != nil {
			log.Fatal(err)
		}
		d := time.Duration(milliseconds) * time.Millisecond
		inTime := run(callers, d, do)
		fmt.Println(float64(inTime)/d.Seconds(), inTime+callers)
	}
}

// run lets callers call do for a time, and returns the number of calls that ended within the
// time. Each caller makes one call more, which ends after the time. The time of all callers begins
// with the call of run: goroutines that calculate on few cores begin late, and a sum of the rates
// of each, over its own time, would be more than the cores can do.
func run(callers int, d time.Duration, do func() error) (inTime int) {
	var tasks sync.WaitGroup
	var all atomic.Int64
	began := time.Now()
	for range callers {
		tasks.Go(func() {
			for n := int64(0); ; n++ {
				if err := do(); err != nil {
					log.Fatal(err)
				}
				if time.Since(began) > d {
					all.Add(n)
					return
				}
			}
		})
	}
	tasks.Wait()
	return int(all.Load())
}

// serve serves the unary method /limits.Limits/Call until the process is killed.
func serve(size string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	register(server, n)
	fmt.Println(listener.Addr())
	return server.Serve(listener)
}

// signatures returns a function that signs a text as long as the signed part of an access token.
func signatures() (func() error, error) {
	_, key, err := ed25519.GenerateKey(nil)
	text := make([]byte, 400)
	return func() error { ed25519.Sign(key, text); return nil }, err
}

// hashes makes one hash.
func hashes() error {
	argon2.IDKey([]byte("correct horse battery staple"), make([]byte, 16), 2, 19<<10, 1, 32)
	return nil
}

const (
	rows = 1_000_000
	// used is the number of rows that are updated. The rows are spread over the whole table.
	used = 65_536
	// filler makes a row as long as a row of a session.
	filler = "0123456789012345678901234567890123456789012345678901234567890123456789"
)

// rowID returns the key of a row: the bits of n, so mixed that keys that follow each other in n
// are far apart in the table.
func rowID(n int) string { return fmt.Sprintf("%016x", uint64(n+1)*0x9e3779b97f4a7c15) }

func randomRow() string { return rowID(rand.IntN(used) * (rows / used)) }
