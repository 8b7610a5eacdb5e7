package server_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// watchFrom opens a stream of the trust bundle with an id, reads the stream until the end of
// the test, and returns the resume token of the opening.
func watchFrom(t *testing.T, conn *grpc.ClientConn, id []byte) (resume []byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := watchwordv1.NewTrustServiceClient(conn).WatchBundle(ctx, &watchwordv1.WatchBundleRequest{Watcher: id})
	if err != nil {
		t.Fatal(err)
	}
	for beat := false; !beat; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.GetResume()) > 0 {
			resume = m.GetResume()
		}
		beat = m.GetHeartbeat() != nil
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for err == nil {
			_, err = stream.Recv()
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return resume
}

// identify returns the first message of a watcher's reports.
func identify(service string) *watchwordv1.ReportWatcherRequest {
	return &watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Identity{Identity: &watchwordv1.WatcherIdentity{
		Watcher: []byte("some id"), Service: service, Instance: "one", Version: "v1.2.3",
	}}}
}

func reporting(resume []byte) *watchwordv1.ReportWatcherRequest {
	return &watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Report{Report: &watchwordv1.WatcherReport{
		Resume: resume, Staleness: durationpb.New(2 * time.Second),
		Refusals: []*watchwordv1.RefusalCount{{Reason: watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED, Count: 3}},
	}}}
}

// list returns the watchers, by their services; a watcher without reports has the name "".
func (h *harness) list(t *testing.T) (map[string]*watchwordv1.Watcher, *watchwordv1.ListWatchersResponse) {
	t.Helper()
	all := map[string]*watchwordv1.Watcher{}
	answer, err := h.trust.ListWatchers(h.admin.as(t.Context()), &watchwordv1.ListWatchersRequest{PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range answer.GetWatchers() {
		if all[w.GetService()] != nil {
			t.Errorf("two watchers are %q", w.GetService())
		}
		all[w.GetService()] = w
	}
	return all, answer
}

// own opens a connection of its own to the server.
func (h *harness) own(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(h.server.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// The list has every stream of the bundle once: with what a watcher has reported, and without
// words for a watcher that reports nothing. A resume token of another server is no position.
func TestListWatchers(t *testing.T) {
	h := start(t)
	conn := h.own(t)
	watchFrom(t, conn, nil)
	watchFrom(t, conn, []byte("some id"))
	resume := watchFrom(t, conn, []byte("some id")) // the server does not know yet that the older stream is dead
	reports, err := h.trust.ReportWatcher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*watchwordv1.ReportWatcherRequest{identify("orders\x1b[2J"), reporting(resume)} {
		if err := reports.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	var w *watchwordv1.Watcher
	var answer *watchwordv1.ListWatchersResponse
	listed := func(what string, done func() bool) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			var all map[string]*watchwordv1.Watcher
			all, answer = h.list(t)
			if w = all["orders\x1b[2J"]; len(all) == 2 && all[""] != nil && !all[""].GetReports() && w.GetReports() && done() {
				return
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("%s: %v", what, answer)
			}
		}
	}
	listed("the first report", func() bool { return w.GetPosition() > 0 && w.GetLag() == 0 })
	if w.GetInstance() != "one" || w.GetVersion() != "v1.2.3" || w.GetAddress() != "127.0.0.1" || w.GetCertificate() != "" ||
		w.GetStaleness().AsDuration() < 2*time.Second || len(w.GetRefusals()) != 1 || w.GetRefusals()[0].GetCount() != 3 {
		t.Errorf("the watcher is listed as %v", w)
	}
	if r := answer.GetReplicas(); len(r) != 1 || !r[0].GetAnswers() || r[0].GetId() != w.GetReplica() || r[0].GetPosition() != answer.GetPosition() ||
		!strings.HasSuffix(r[0].GetAddress(), " "+h.server.GRPCAddr()) {
		t.Errorf("the replicas are %v", r)
	}

	before := w.GetPosition()
	if _, err := h.keys.RotateKey(h.admin.as(t.Context()), &watchwordv1.RotateKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	listed("the lag", func() bool {
		return w.GetPosition() == before && w.GetLag() == answer.GetPosition()-before && w.GetLag() > 0
	})
	if err := reports.Send(reporting(watchFrom(t, conn, []byte("some id")))); err != nil {
		t.Fatal(err)
	}
	listed("a later report", func() bool { return w.GetLag() == 0 })
	if err := reports.Send(reporting([]byte("a resume token of another server"))); err != nil {
		t.Fatal(err)
	}
	listed("a report of another server's position", func() bool { return w.GetPosition() == 0 && w.GetLag() > 0 })
	// The admin's own logins do not count here: a page ends where the next one begins.
	first, err := h.trust.ListWatchers(h.admin.as(t.Context()), &watchwordv1.ListWatchersRequest{PageSize: 1})
	if err != nil || len(first.GetWatchers()) != 1 || first.GetNextPageToken() == "" {
		t.Fatalf("the first page: %v, %v", first, err)
	}
	second, err := h.trust.ListWatchers(h.admin.as(t.Context()), &watchwordv1.ListWatchersRequest{PageSize: 1, PageToken: first.GetNextPageToken()})
	if err != nil || len(second.GetWatchers()) != 1 || second.GetNextPageToken() != "" || second.GetWatchers()[0].GetReports() == first.GetWatchers()[0].GetReports() {
		t.Errorf("the second page: %v, %v", second, err)
	}
}

// A watcher that floods the server with reports loses its stream of reports, and keeps its
// stream of the bundle.
func TestFloodOfReports(t *testing.T) {
	h := start(t)
	reports, err := h.trust.ReportWatcher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = reports.Send(identify("flood"))
	for n := 0; err == nil && n < 500; n++ { // fewer than the small frames that the gate admits
		err = reports.Send(reporting(nil))
	}
	_, err = reports.CloseAndRecv()
	refusedBy(t, err, "OVERLOADED", "")
}

// A Verifier reports its name by its options, and reports its refusals.
func TestVerifierReports(t *testing.T) {
	h := start(t)
	v, err := authn.NewVerifier(t.Context(), h.own(t), authn.WithAudience("internal"),
		authn.WithName("notes"), authn.WithInstance("pod-7"), authn.WithVersion("v9"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.Verify(t.Context(), "no token"); err == nil {
		t.Error("no token was accepted")
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		all, answer := h.list(t)
		w := all["notes"]
		if w.GetReports() && w.GetInstance() == "pod-7" && w.GetVersion() == "v9" && w.GetPosition() == answer.GetPosition() &&
			len(w.GetRefusals()) == 1 && w.GetRefusals()[0].GetReason() == watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("the verifier is listed as %v", answer)
		}
	}
}

// A stream of reports keeps no connection: when all connections of a network are taken by such
// streams, another connection of the network gets the place of one of them.
func TestReportsKeepNoConnection(t *testing.T) {
	h := start(t, func(cfg *server.Config) { cfg.MaxConnections = 16 })
	// One network can have half of the 16 connections, and half of the 12 places for watchers as
	// places for streams of reports.
	for range 2 {
		watchFrom(t, h.own(t), nil)
	}
	for range 6 {
		conn := h.own(t)
		reports, err := watchwordv1.NewTrustServiceClient(conn).ReportWatcher(t.Context())
		if err == nil {
			err = reports.Send(identify("idle"))
		}
		if err == nil { // the answer comes after the server has read the identity from the connection
			_, err = watchwordv1.NewTrustServiceClient(conn).GetTime(t.Context(), &watchwordv1.GetTimeRequest{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if _, err := watchwordv1.NewTrustServiceClient(h.own(t)).GetTime(t.Context(), &watchwordv1.GetTimeRequest{}, grpc.WaitForReady(false)); err != nil {
			t.Errorf("further connection %d: %v", i, err)
		}
	}
}
