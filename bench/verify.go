package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// bare returns the same answer for every Verify.
type bare struct {
	watchwordv1.UnimplementedAuthServiceServer
	answer *watchwordv1.VerifyResponse
}

func (s *bare) Verify(context.Context, *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	return s.answer, nil
}

// serverProcess is this program, run again as a server alone: so that the processor time of the
// server is known without that of the clients.
type serverProcess struct {
	*exec.Cmd
	stdin    io.Closer
	conns    []*grpc.ClientConn
	password string
}

// The first argument by which this program becomes a server; a second one is the answer of the
// bare server.
const (
	serveWatchword = "serve-watchword"
	serveBare      = "serve-bare"
)

// isServer reports whether the arguments ask for a server alone, and if so, serves until the
// standard input ends.
func isServer(args []string) bool {
	var addr, password string
	switch {
	case len(args) == 2 && args[1] == serveWatchword:
		w, err := startWatchword("")
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(2)
		}
		defer w.close()
		addr, password = w.addr, w.password
	case len(args) == 3 && args[1] == serveBare:
		answer := new(watchwordv1.VerifyResponse)
		err := prototext.Unmarshal([]byte(args[2]), answer)
		e := &endpoint{}
		if err == nil {
			e, err = serve(func(s *grpc.Server) { watchwordv1.RegisterAuthServiceServer(s, &bare{answer: answer}) })
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(2)
		}
		defer e.close()
		addr, password = e.conns[0].Target(), "none"
	default:
		return false
	}
	fmt.Println(addr, password)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return true
}

func startServer(args ...string) (*serverProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &serverProcess{Cmd: exec.Command(self, args...)}
	p.Stderr, p.Env = os.Stderr, append(os.Environ(), fmt.Sprint("GOMAXPROCS=", cores))
	if p.stdin, err = p.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	var addr string
	if _, err = fmt.Fscan(bufio.NewReader(out), &addr, &p.password); err == nil {
		p.conns, err = dial(addr, connections)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *serverProcess) close() {
	for _, c := range p.conns {
		c.Close()
	}
	p.stdin.Close()
	_ = p.Wait()
}

// used returns the processor time of the process. The kernel counts it in nanoseconds, for each
// thread.
func (p *serverProcess) used() (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.Process.Pid))
	for _, file := range threads {
		text, failed := os.ReadFile(file)
		var ran int64
		if failed == nil {
			_, failed = fmt.Sscan(string(text), &ran)
		}
		err, sum = errors.Join(err, failed), sum+time.Duration(ran)
	}
	return sum, err
}

func (p *serverProcess) calls(request *watchwordv1.VerifyRequest) func(worker, i int) error {
	clients := make([]watchwordv1.AuthServiceClient, len(p.conns))
	for k := range p.conns {
		clients[k] = watchwordv1.NewAuthServiceClient(p.conns[k])
	}
	return func(worker, _ int) error {
		_, err := clients[worker%len(clients)].Verify(context.Background(), request)
		return err
	}
}

// verifyRPC compares the RPC Verify of a server in a process of its own with a unary RPC that
// takes and returns the same messages and does nothing, in another process.
func verifyRPC(b *bench) error {
	ours, err := startServer(serveWatchword)
	if err != nil {
		return err
	}
	defer ours.close()
	auth := watchwordv1.NewAuthServiceClient(ours.conns[0])
	login, err := auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: "admin", Password: ours.password})
	if err != nil {
		return err
	}
	request := &watchwordv1.VerifyRequest{AccessToken: login.GetTokens().GetAccessToken()}
	answer, err := auth.Verify(context.Background(), request)
	if err != nil {
		return err
	}
	least, err := startServer(serveBare, strings.TrimSpace(prototext.Format(answer)))
	if err != nil {
		return err
	}
	defer least.close()
	r := race{turns: b.of(24, 200), stint: 150 * time.Millisecond, workers: callers, batch: 1}
	sides := []*serverProcess{least, ours}
	rate, cost := make([]rates, len(sides)), make([]rates, len(sides))
	for turn := range r.turns + 1 { // the first turn warms up, and does not count
		for k := range sides {
			if turn%2 == 1 {
				k = len(sides) - 1 - k
			}
			before, err1 := sides[k].used()
			began := time.Now()
			made, err2 := r.stintOf(side{"Verify", sides[k].calls(request)})
			took := time.Since(began).Seconds()
			after, err3 := sides[k].used()
			if err := errors.Join(err1, err2, err3); err != nil {
				return err
			}
			if turn > 0 {
				rate[k], cost[k] = append(rate[k], made), append(cost[k], (after-before).Seconds()*1e6/(made*took))
			}
		}
	}
	b.report("verify-rpc/64-callers/of-bare", rate[1].over(rate[0]), "of-it", atLeast(0.93))
	b.report("verify-rpc/64-callers/bare", median(rate[0]), "calls/s", limit{})
	b.report("verify-rpc/64-callers/processor-time-of-server/of-bare", cost[1].over(cost[0]), "times", atMost(1.2))
	b.report("verify-rpc/64-callers/processor-time-of-server/bare", median(cost[0]), "µs/call", limit{})
	b.report("verify-rpc/message-sizes", float64(proto.Size(request)+proto.Size(answer)), "bytes", limit{})
	return nil
}
