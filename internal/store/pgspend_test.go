package store_test

import (
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// The statement for a batch does what the statement for a single refresh does, also for
// members between others.
func TestABatchSpendsAsASingleRefresh(t *testing.T) {
	s := storetest.Open(t, storetest.Postgres(t))
	insertAlice(t, s, 2)
	generation := int64(0)
	spend := func(spend *store.Spend) error {
		generation++
		errs := store.SpendTogether(t.Context(), s, []*store.Spend{spendOf("s0", generation), spend, spendOf("s1", generation)})
		if errs[0] != nil || errs[2] != nil {
			t.Errorf("the other members: %v", errs)
		}
		return errs[1]
	}
	storetest.SpendRefuses(t, s, spend)
	storetest.SpendAdvances(t, s, spend)
}
