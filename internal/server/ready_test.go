package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// A hundred requests share one read, also if the client of the first request leaves. The
// result counts for half a second, whether good or bad.
func TestReadsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errDown := errors.New("down")
		reads, finish := 0, make(chan error)
		s := shared{read: func(ctx context.Context) error {
			reads++
			select {
			case err := <-finish:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		for round, want := range []error{errDown, nil, errDown} {
			var tasks sync.WaitGroup
			ask := func(ctx context.Context, want error) {
				tasks.Go(func() {
					if err := s.ask(ctx); !errors.Is(err, want) {
						t.Errorf("round %d: %v, want %v", round, err, want)
					}
				})
				synctest.Wait()
			}
			first, leave := context.WithCancel(t.Context())
			ask(first, want)
			other, leaveToo := context.WithCancel(t.Context())
			ask(other, context.Canceled)
			leave()
			leaveToo()
			for range 100 {
				ask(t.Context(), want)
			}
			finish <- want
			tasks.Wait()
			time.Sleep(time.Second/2 - 1)
			ask(t.Context(), want)
			tasks.Wait()
			if reads != round+1 {
				t.Fatalf("%d reads in %d rounds", reads, round+1)
			}
			time.Sleep(time.Nanosecond)
		}
	})
}

// Requests to /readyz share a read, and a server that stops says so at once.
func TestReadyz(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), storetest.SQLite(t))
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{store: db, drain: &drain{begun: make(chan struct{})}}
		var mint error
		handler := s.serveReady(func() error { return mint })
		want := func(code int, text string) {
			t.Helper()
			page := httptest.NewRecorder()
			handler(page, httptest.NewRequest(http.MethodGet, "/readyz", nil))
			if page.Code != code || page.Body.String() != text+"\n" {
				t.Errorf("%d %q, want %d %q", page.Code, page.Body, code, text)
			}
		}
		want(http.StatusOK, "ok")
		mint = errors.New("no key signs")
		want(http.StatusServiceUnavailable, "no access token can be made: no signing key is usable")
		mint = nil
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		want(http.StatusOK, "ok") // of the read before
		time.Sleep(time.Second / 2)
		want(http.StatusServiceUnavailable, "database unavailable")
		s.drain.begin()
		want(http.StatusServiceUnavailable, "stopping")
	})
}
