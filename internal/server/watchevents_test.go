package server_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/server"
)

// eventReader is a client of WatchEvents.
type eventReader struct {
	*harness
	req    *watchwordv1.WatchEventsRequest
	stream watchwordv1.AuditService_WatchEventsClient
	end    func()
	last   map[string]*watchwordv1.Event
	came   int
	gap    watchwordv1.EventGap // the gap that came last
}

// watchEvents opens a stream, and reads the first message.
func (h *harness) watchEvents(t *testing.T, req *watchwordv1.WatchEventsRequest) *eventReader {
	t.Helper()
	r := &eventReader{harness: h, req: req, last: map[string]*watchwordv1.Event{}}
	r.open(t)
	return r
}

func (r *eventReader) open(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(r.admin.as(t.Context()))
	t.Cleanup(cancel)
	stream, err := r.audit.WatchEvents(ctx, r.req)
	if err != nil {
		t.Fatal(err)
	}
	r.stream, r.end = stream, cancel
	r.recv(t)
}

func (r *eventReader) recv(t *testing.T) *watchwordv1.WatchEventsResponse {
	t.Helper()
	m, err := r.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range m.GetEvents() {
		r.last[e.GetId()] = e
		r.came++
	}
	r.req.Resume, r.req.StartTime = m.GetResume(), nil
	if m.GetGap() != watchwordv1.EventGap_EVENT_GAP_UNSPECIFIED {
		r.gap = m.GetGap()
	}
	return m
}

// await receives until the reader has exactly the events that ListEvents lists.
func (r *eventReader) await(t *testing.T, filter *watchwordv1.ListEventsRequest) {
	t.Helper()
	for {
		want := map[string]int64{}
		for _, e := range r.events(t, filter) {
			want[e.GetId()] = e.GetCount()
		}
		got := map[string]int64{}
		for id, e := range r.last {
			got[id] = e.GetCount()
		}
		if maps.Equal(want, got) {
			return
		}
		r.recv(t)
	}
}

// A stream sends what ListEvents lists, goes on from its resume text after the stream has
// ended and after the server has restarted, and sends nothing twice. A stream without a start sends
// new events alone.
func TestWatchEvents(t *testing.T) {
	eachEngine(t, func(t *testing.T, on func(*server.Config)) {
		h := start(t, on)
		all := h.watchEvents(t, &watchwordv1.WatchEventsRequest{StartTime: &timestamppb.Timestamp{}})
		recent := h.watchEvents(t, &watchwordv1.WatchEventsRequest{Type: "user.created"})
		if len(recent.last) > 0 {
			t.Errorf("a stream from now on begins with %v", recent.last)
		}
		alice := h.make(t)
		one := h.watchEvents(t, &watchwordv1.WatchEventsRequest{UserName: alice.name, StartTime: &timestamppb.Timestamp{}})
		all.await(t, &watchwordv1.ListEventsRequest{})
		for len(recent.last) == 0 {
			recent.recv(t)
		}
		for _, r := range []*eventReader{all, one} {
			r.end()
			h.relogin(t, alice)
			before := r.came
			r.open(t)
			filter := &watchwordv1.ListEventsRequest{UserName: r.req.GetUserName()}
			r.await(t, filter)
			if r.came != len(r.last) || r.came == before {
				t.Errorf("%d events came, of which %d differ; before the pause: %d", r.came, len(r.last), before)
			}
		}
		if types := slices.Collect(maps.Values(recent.last)); len(types) != 1 || types[0].GetUserName() != alice.name {
			t.Errorf("a stream of created users has %v", types)
		}
		other := &watchwordv1.WatchEventsRequest{Resume: all.req.GetResume(), Type: "login"}
		stream, err := h.audit.WatchEvents(h.admin.as(t.Context()), other)
		if err == nil {
			_, err = stream.Recv()
		}
		refusedBy(t, err, "INVALID_REQUEST", "resume")
	})
}

// A stream ends with OK before its access token expires: the refusal of an expired token
// would be in the security record.
func TestAStreamOfEventsEndsBeforeItsToken(t *testing.T) {
	h := start(t, func(c *server.Config) { c.AccessTTL = 5 * time.Second })
	h.relogin(t, h.admin)
	r := h.watchEvents(t, &watchwordv1.WatchEventsRequest{})
	for {
		if _, err := r.stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	h.relogin(t, h.admin)
	r.open(t)
	if events := h.events(t, &watchwordv1.ListEventsRequest{Type: "call"}); len(events) > 0 {
		t.Errorf("refused calls are on record: %v", events)
	}
}

// A reader that has been away is told that records were deleted before the reader has read them,
// and goes on with the records that are left. A reader that was up to date is told of no gap.
func TestAStreamTellsOfDeletedEvents(t *testing.T) {
	eachEngine(t, func(t *testing.T, on func(*server.Config)) {
		h := start(t, on)
		behind := h.watchEvents(t, &watchwordv1.WatchEventsRequest{StartTime: &timestamppb.Timestamp{}})
		behind.await(t, &watchwordv1.ListEventsRequest{})
		behind.end()
		h.relogin(t, h.admin)
		upToDate := h.watchEvents(t, &watchwordv1.WatchEventsRequest{StartTime: &timestamppb.Timestamp{}})
		upToDate.await(t, &watchwordv1.ListEventsRequest{})
		upToDate.end()
		h.behind(t, func(tx *feed.Tx) error {
			_, err := tx.PruneAudit(tx.Now().Add(time.Hour), 1000)
			return err
		})
		h.relogin(t, h.admin)
		for r, want := range map[*eventReader]watchwordv1.EventGap{behind: watchwordv1.EventGap_EVENT_GAP_DELETED, upToDate: watchwordv1.EventGap_EVENT_GAP_UNSPECIFIED} {
			r.gap, r.last = watchwordv1.EventGap_EVENT_GAP_UNSPECIFIED, map[string]*watchwordv1.Event{}
			r.open(t)
			r.await(t, &watchwordv1.ListEventsRequest{})
			if r.gap != want || len(r.last) == 0 {
				t.Errorf("the gap %v with %d events, want %v", r.gap, len(r.last), want)
			}
		}
	})
}

// The number of streams of WatchEvents is bounded: when all are taken, an admin with many
// streams loses one to another admin.
func TestStreamsOfEventsAreBounded(t *testing.T) {
	h := start(t)
	var streams []*eventReader
	for range 16 {
		streams = append(streams, h.watchEvents(t, &watchwordv1.WatchEventsRequest{}))
	}
	stream, err := h.audit.WatchEvents(h.admin.as(t.Context()), &watchwordv1.WatchEventsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if got := outcome(err); got != "OVERLOADED" {
		t.Errorf("one stream more than an admin may have: %s", got)
	}
	streams[0].end()
	other := h.make(t, "admin")
	stream, err = h.audit.WatchEvents(other.as(t.Context()), &watchwordv1.WatchEventsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wants(t, "another admin", outcome(err), "ok")
}
