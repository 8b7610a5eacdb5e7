package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// A replica is ready while the database is away, and not ready while a requirement is not met. A
// requirement that fails is one line in the log.
func TestReadyz(t *testing.T) {
	uri := storetest.Postgres(t)
	proxy := pgtest.NewProxy(t, uri)
	db, err := store.Open(t.Context(), proxy.URI())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	defer proxy.Thaw()
	var log bytes.Buffer
	s := &Server{
		store: db, drain: &drain{begun: make(chan struct{})}, health: health.NewServer(), grpc: grpc.NewServer(),
		logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	r := newReadiness(s)
	var mint error
	r.needs = append(r.needs[:1], requirement{"no access token can be made", func() error { return mint }})
	want := func(code int, text string) {
		t.Helper()
		page := httptest.NewRecorder()
		r.serveReady(page, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		if page.Code != code || page.Body.String() != text+"\n" {
			t.Errorf("%d %q, want %d %q", page.Code, page.Body, code, text)
		}
	}
	look := func() { r.look(t.Context()) }
	want(http.StatusServiceUnavailable, "starting")
	look()
	want(http.StatusOK, "ok")
	mint = errors.New("a detail")
	for range 3 {
		look()
		want(http.StatusServiceUnavailable, "no access token can be made")
	}
	mint = nil
	look()
	want(http.StatusOK, "ok")
	if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "a detail") {
		t.Errorf("the log has %d lines, want one about the requirement, and one about the end:\n%s", lines, &log)
	}
	busy(t, uri, db, look)
	want(http.StatusOK, "ok")
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.SetSetting("moved_to", "postgres://elsewhere") }); err != nil {
		t.Fatal(err)
	}
	look()
	want(http.StatusServiceUnavailable, "this server cannot work with the database")
	proxy.Freeze()
	look()
	want(http.StatusServiceUnavailable, "this server cannot work with the database")
	r.schema = nil
	look()
	want(http.StatusOK, "ok: the database is away; Verify and WatchBundle continue")
	s.drain.begin()
	want(http.StatusServiceUnavailable, "stopping")
}

// busy calls look while the table of the settings is locked, and other calls get answers.
func busy(t *testing.T, uri string, db *store.Store, look func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) // unlocks
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE settings"); err != nil {
		t.Fatal(err)
	}
	looked := make(chan struct{})
	go func() { look(); close(looked) }()
	for {
		select {
		case <-looked:
			return
		default:
		}
		if err := db.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Head(); return err }); err != nil {
			t.Error(err)
		}
	}
}
