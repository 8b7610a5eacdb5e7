package reload

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A read that hangs, as of a network drive that is away, holds up neither the end of Run nor of
// Now, nor Status.
func TestAReadThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	reading, answer := make(chan struct{}, 1), make(chan struct{})
	s := NewSet(slog.New(slog.DiscardHandler))
	_, err := add(s, source[string]{"value", []string{path}, func(contents [][]byte) (string, time.Time, error) {
		if string(contents[0]) != "old" {
			reading <- struct{}{}
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
	go func() { s.Now(ctx); s.Run(ctx); ended <- struct{}{} }()
	go func() { s.Run(ctx); ended <- struct{}{} }()
	<-reading
	if got := s.Status(); len(got) != 1 {
		t.Errorf("the status is %+v", got)
	}
	cancel()
	<-ended
	<-ended
	close(answer)
}
