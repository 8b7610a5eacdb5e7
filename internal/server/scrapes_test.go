package server

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// slowWriter stands for a client that reads nothing until the test releases it.
type slowWriter struct {
	http.ResponseWriter
	release chan struct{}
}

func (w slowWriter) Write(p []byte) (int, error) { <-w.release; return w.ResponseWriter.Write(p) }

// At most two scrapes run at a time, and a client that does not read holds no turn.
func TestScrapesTakeTurns(t *testing.T) {
	t.Parallel()
	running, most, finish := 0, 0, make(chan struct{})
	var mu sync.Mutex
	handler := boundScrapes(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-finish
		mu.Lock()
		running--
		mu.Unlock()
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("page"))
	}))
	release := make(chan struct{})
	var deaf, readers sync.WaitGroup
	for range 10 {
		deaf.Go(func() {
			handler.ServeHTTP(slowWriter{httptest.NewRecorder(), release}, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		})
	}
	close(finish)
	for range 10 {
		readers.Go(func() {
			page := httptest.NewRecorder()
			handler.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			if page.Code != http.StatusTeapot || page.Body.String() != "page" {
				t.Errorf("%d %q", page.Code, page.Body)
			}
		})
	}
	readers.Wait() // while the others have not read anything
	close(release)
	deaf.Wait()
	if most > 2 {
		t.Errorf("%d scrapes ran at a time", most)
	}
}
