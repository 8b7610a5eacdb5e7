package store_test

import (
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
)

// One call looks at so many records and no more, and says where to go on.
func TestAuditLooksAtABoundedNumber(t *testing.T) {
	s := open(t)
	const n, scan = 1000, 100
	for i := range n {
		r := &store.AuditRecord{Type: "login"}
		if i == 10 || i == 500 {
			r.Type = "rare"
		}
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertAudit(r) }); err != nil {
			t.Fatal(err)
		}
	}
	read := func(f store.AuditFilter, limit int) (sizes []int) {
		for {
			var page []*store.AuditRecord
			var next string
			err := s.Read(t.Context(), func(tx *store.Tx) (err error) {
				page, next, err = tx.Audit(f, limit, scan)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, len(page))
			if f.Before = next; next == "" {
				return sizes
			}
		}
	}
	count := func(sizes []int) (all int) {
		for _, size := range sizes {
			all += size
		}
		return all
	}
	if sizes := read(store.AuditFilter{Type: "rare"}, 10); count(sizes) != 2 || len(sizes) < n/scan {
		t.Errorf("rare ones: pages of %v", sizes)
	}
	for _, limit := range []int{1, 7, 100, 250, 5000} {
		if sizes := read(store.AuditFilter{}, limit); count(sizes) != n {
			t.Errorf("by %d: pages of %v", limit, sizes)
		}
	}
}
