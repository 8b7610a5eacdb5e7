package extauthz

import (
	"net"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// A client that begins questions (calls of Check) and does not send them completely holds a
// bounded number of places, over all its connections, and loses each place after a time.
func TestQuestionsThatDoNotArrive(t *testing.T) {
	e, _ := world(t)
	free := places(4)
	// begin opens a connection of its own to a server with these places, and begins a question there.
	begin := func(within time.Duration) grpc.ClientStream {
		t.Helper()
		s := &server{verifier: e.checker.verifier, checker: e.checker, questions: &questions{free, within}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := s.grpcServer(nil)
		go func() { _ = served.Serve(l) }()
		t.Cleanup(served.Stop)
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		question, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, authv3.Authorization_Check_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		return question
	}
	ends := func(question grpc.ClientStream, want codes.Code) {
		t.Helper()
		if err := question.RecvMsg(new(authv3.CheckResponse)); status.Code(err) != want {
			t.Errorf("the question ended with %v, want %v", err, want)
		}
	}
	taken := func(n int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); free.Held() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d places are taken, want %d", free.Held(), n)
			}
		}
	}
	begin(time.Hour)
	taken(1)
	impatient := begin(time.Second)
	taken(2)
	ends(begin(time.Hour), codes.ResourceExhausted)
	ends(impatient, codes.DeadlineExceeded)
	taken(1)
	answered := begin(time.Hour)
	if err := answered.SendMsg(new(authv3.CheckRequest)); err != nil {
		t.Fatal(err)
	}
	if err := answered.CloseSend(); err != nil {
		t.Fatal(err)
	}
	ends(answered, codes.OK)
	taken(1)
}
