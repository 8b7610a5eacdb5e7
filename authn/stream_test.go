package authn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
)

// streams is a guarded server with one method, a stream. A test plays the handler.
type streams struct {
	conn    *grpc.ClientConn
	issuer  *authntest.Issuer
	handler func(stream grpc.ServerStream) error
	ended   chan error // the results of the handler
}

const chat = "/chat.v1.Chat/Talk"

func serveStreams(t *testing.T, handler func(grpc.ServerStream) error, outside ...grpc.StreamServerInterceptor) *streams {
	t.Helper()
	return serveLoggedStreams(t, nil, handler, outside...)
}

func serveLoggedStreams(t *testing.T, log *slog.Logger, handler func(grpc.ServerStream) error, outside ...grpc.StreamServerInterceptor) *streams {
	t.Helper()
	s := &streams{issuer: authntest.New(), handler: handler, ended: make(chan error, 1000)}
	v := s.issuer.NewVerifier(t, authn.WithAudience("test"), authn.WithLogger(log), tokenNeeded(chat))
	listener, stop := serve(func(r *grpc.Server) {
		r.RegisterService(&grpc.ServiceDesc{ServiceName: "chat.v1.Chat", Streams: []grpc.StreamDesc{{
			StreamName: "Talk", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error {
				err := s.handler(stream)
				s.ended <- err
				return err
			},
		}}}, nil)
	}, append([]grpc.ServerOption{grpc.ChainStreamInterceptor(outside...)}, v.ServerOptions()...)...)
	t.Cleanup(stop)
	s.conn = dial(listener)
	t.Cleanup(func() { s.conn.Close() })
	return s
}

// open begins a stream with a token.
func (s *streams) open(t *testing.T, token string) grpc.ClientStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	stream, err := s.conn.NewStream(authntest.Bearer(ctx, token), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, chat)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// busy has handlers that are busy in different ways when their stream must end.
var busy = map[string]func(grpc.ServerStream) error{
	"in Recv": func(s grpc.ServerStream) error { return s.RecvMsg(new(emptypb.Empty)) },
	"in Send": func(s grpc.ServerStream) error {
		for { // also when the client's window is full
			if err := s.SendMsg(wrapperspb.String(strings.Repeat("x", 1<<16))); err != nil {
				return err
			}
		}
	},
	"in both": func(s grpc.ServerStream) error {
		received := make(chan error, 1)
		go func() { received <- s.RecvMsg(new(emptypb.Empty)) }()
		for {
			if err := s.SendMsg(wrapperspb.String(strings.Repeat("x", 1<<16))); err != nil {
				return errors.Join(err, <-received)
			}
		}
	},
	"in work": func(s grpc.ServerStream) error {
		<-s.Context().Done()
		return context.Cause(s.Context())
	},
}

// A stream ends within a second after its token is no longer accepted, with the status that
// a new call would get, whatever the handler is doing.
func TestAStreamEndsWithItsToken(t *testing.T) {
	alice := authntest.User{Name: "alice"}
	for why, c := range map[string]struct {
		end    func(s *streams, token string)
		code   codes.Code
		reason string
	}{
		"expiry":     {func(s *streams, _ string) { s.issuer.Advance(authntest.MaxLifetime) }, codes.Unauthenticated, "TOKEN_EXPIRED"},
		"logout":     {func(s *streams, token string) { s.issuer.EndSession(token) }, codes.Unauthenticated, "TOKEN_REVOKED"},
		"user ended": {func(s *streams, _ string) { s.issuer.EndUser(alice) }, codes.Unauthenticated, "TOKEN_REVOKED"},
		"rights":     {func(s *streams, _ string) { s.issuer.ChangeRights(alice) }, codes.Unauthenticated, "TOKEN_STALE"},
		"withdrawal": {func(s *streams, token string) { s.issuer.WithdrawKey(token) }, codes.Unauthenticated, "TOKEN_INVALID"},
	} {
		for where, handler := range busy {
			t.Run(why+", "+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					begun := make(chan struct{})
					s := serveStreams(t, func(stream grpc.ServerStream) error {
						if p, ok := authn.FromContext(stream.Context()); !ok || p.Username() != "alice" {
							t.Errorf("the handler's principal is %v", p)
						}
						close(begun)
						return handler(stream)
					})
					token := s.issuer.Token(alice)
					stream := s.open(t, token)
					<-begun
					time.Sleep(10 * time.Minute) // an open stream with a good token stays open
					select {
					case err := <-s.ended:
						t.Fatalf("the stream ended with a good token: %v", err)
					default:
					}
					began := time.Now()
					c.end(s, token)
					// The client reads nothing before the handler's end, so SendMsg stays blocked.
					if err := <-s.ended; name(err) != c.reason {
						t.Errorf("the handler got %v", err)
					}
					if took := time.Since(began); took > time.Second {
						t.Errorf("the handler ended after %v", took)
					}
					err := error(nil)
					for err == nil {
						err = stream.RecvMsg(newText())
					}
					refusedBy(t, err, c.code, c.reason, chat)
				})
			})
		}
	}
}

// Of many streams, only the streams with an ended session end.
func TestOtherStreamsGoOn(t *testing.T) {
	const n = 200
	s := serveStreams(t, func(stream grpc.ServerStream) error {
		for {
			m := new(wrapperspb.StringValue)
			if err := stream.RecvMsg(m); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	})
	all := make([]grpc.ClientStream, n)
	tokens := make([]string, n)
	for i := range all {
		tokens[i] = s.issuer.Token(authntest.User{Name: fmt.Sprint(i)})
		all[i] = s.open(t, tokens[i])
	}
	echo := func(i int) error {
		if err := all[i].SendMsg(wrapperspb.String("hello")); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		return all[i].RecvMsg(newText())
	}
	for i := range all {
		if err := echo(i); err != nil {
			t.Fatal(err)
		}
	}
	for i := range all {
		if i%2 == 0 {
			s.issuer.EndSession(tokens[i])
		}
	}
	for range n / 2 {
		if err := <-s.ended; name(err) != "TOKEN_REVOKED" {
			t.Errorf("a handler got %v", err)
		}
	}
	for i := range all {
		want := "ok"
		if i%2 == 0 {
			want = "TOKEN_REVOKED"
		}
		if err := echo(i); name(err) != want {
			t.Errorf("stream %d: %v, want %s", i, err, want)
		}
		if want == "ok" {
			if err := all[i].CloseSend(); err != nil {
				t.Error(err)
			}
			if err := all[i].RecvMsg(newText()); !errors.Is(err, io.EOF) {
				t.Errorf("stream %d ended with %v", i, err)
			}
		}
	}
}

// The client gets a handler's error, and a recovery interceptor gets a handler's panic.
func TestResultsOfAHandler(t *testing.T) {
	refusal := status.Error(codes.AlreadyExists, "its own")
	for how, c := range map[string]struct {
		handler  func(grpc.ServerStream) error
		want     codes.Code
		panicked any
	}{
		"well":           {func(grpc.ServerStream) error { return nil }, codes.OK, nil},
		"with a status":  {func(grpc.ServerStream) error { return refusal }, codes.AlreadyExists, nil},
		"with a panic":   {func(grpc.ServerStream) error { panic("a bug") }, codes.DataLoss, "a bug"},
		"by nil's panic": {func(grpc.ServerStream) error { panic(nil) }, codes.DataLoss, new(runtime.PanicNilError)},
		"by Goexit":      {func(grpc.ServerStream) error { runtime.Goexit(); return nil }, codes.Internal, nil},
	} {
		t.Run(how, func(t *testing.T) {
			var mu sync.Mutex
			var recovered any
			s := serveStreams(t, c.handler, func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
				defer func() {
					if p := recover(); p != nil {
						mu.Lock()
						recovered = p
						mu.Unlock()
						err = status.Error(codes.DataLoss, "recovered")
					}
				}()
				return handler(srv, stream)
			})
			err := s.open(t, s.issuer.Token(authntest.User{})).RecvMsg(newText())
			if errors.Is(err, io.EOF) {
				err = nil
			}
			mu.Lock()
			defer mu.Unlock()
			if status.Code(err) != c.want || fmt.Sprintf("%T", recovered) != fmt.Sprintf("%T", c.panicked) {
				t.Errorf("%v, recovered %v", err, recovered)
			}
		})
	}
}

// The panic of a handler after the end of its stream is logged once, with the stack.
func TestAPanicAfterTheEnd(t *testing.T) {
	for how, end := range map[string]func(context.Context){
		"at the end": func(ctx context.Context) { <-ctx.Done() },
		"later":      func(ctx context.Context) { <-ctx.Done(); time.Sleep(time.Minute) },
	} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := serveLoggedStreams(t, slog.New(slog.NewTextHandler(&log, nil)), func(stream grpc.ServerStream) error {
					end(stream.Context())
					panic("a late bug")
				})
				token := s.issuer.Token(authntest.User{})
				stream := s.open(t, token)
				synctest.Wait()
				s.issuer.EndSession(token)
				refusedBy(t, stream.RecvMsg(newText()), codes.Unauthenticated, "TOKEN_REVOKED", chat)
				time.Sleep(time.Hour)
				synctest.Wait()
				got := log.String()
				if strings.Count(got, "a late bug") != 1 || !strings.Contains(got, chat) || !strings.Contains(got, "TestAPanicAfterTheEnd") {
					t.Errorf("logged: %s", got)
				}
			})
		})
	}
}

// A panic of the handler at the moment of the stream's end is either raised again or logged, and
// not both.
func TestAPanicAtTheEnd(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			raised := 0
			s := serveLoggedStreams(t, slog.New(slog.NewTextHandler(&log, nil)), func(grpc.ServerStream) error {
				time.Sleep(500 * time.Millisecond) // the moment of the next check of the token
				panic("a bug just now")
			}, func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
				defer func() {
					if recover() != nil {
						raised++
						err = status.Error(codes.DataLoss, "recovered")
					}
				}()
				return handler(srv, stream)
			})
			token := s.issuer.Token(authntest.User{})
			stream := s.open(t, token)
			synctest.Wait()
			s.issuer.EndSession(token)
			err := stream.RecvMsg(newText())
			synctest.Wait()
			logged := strings.Count(log.String(), "a bug just now")
			if logged+raised != 1 || (status.Code(err) == codes.DataLoss) != (raised == 1) {
				t.Errorf("raised %d times, logged %d times, %v", raised, logged, err)
			}
		})
	}
}
