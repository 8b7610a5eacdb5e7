package reload

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// If reading a file hangs, as on a network drive that is away, Status and the ends of Run and
// Now are not delayed, and the log names the file.
func TestAReadThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		answer := make(chan struct{})
		s := NewSet(slog.New(slog.NewTextHandler(&log, nil)))
		_, err := add(s, source[string]{"value", []string{path}, func(contents [][]byte) (string, time.Time, error) {
			if string(contents[0]) != "old" {
				<-answer
			}
			return string(contents[0]), time.Time{}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.Now(ctx); s.Run(ctx); close(ended) }()
		time.Sleep(longRead)
		synctest.Wait()
		if got := s.Status(); len(got) != 1 || strings.Count(log.String(), "hangs") != 1 {
			t.Errorf("the status is %+v, and the log\n%s", got, log.String())
		}
		cancel()
		<-ended
		close(answer)
	})
}
