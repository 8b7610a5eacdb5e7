package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
)

// However long writers storm, the write-ahead log keeps its bound, and the log is gone
// when the store is closed. Each write changes the value: SQLite writes no page that stays equal.
func TestTheLogStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	s := openAt(t, path)
	const writers, writes, size = 32, 300, 8 << 10
	var tasks sync.WaitGroup
	for w := range writers {
		tasks.Go(func() {
			for i := range writes {
				if err := s.Write(context.Background(), func(tx *store.Tx) error {
					return tx.SetSetting(fmt.Sprint(w, i%10), strings.Repeat(fmt.Sprintf("%08d", i), size/8))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	tasks.Wait()
	log, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	written := int64(writers * writes * size)
	if most := int64(store.LongestLog+500) * 1048; log.Size() > most || written < 3*most { // 500 frames of 1 KiB for the last group
		t.Errorf("the log has %d bytes, at most %d are allowed, and %d were written", log.Size(), most, written)
	}
	t.Logf("the log has %d KiB of %d that were written", log.Size()>>10, written>>10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); !os.IsNotExist(err) {
		t.Errorf("the log of a closed store: %v", err)
	}
}
