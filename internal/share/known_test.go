package share

import (
	"fmt"
	"testing"
)

// An owner of proofs from very many networks fills no pool with known networks: unknown
// networks still draw lots for the places, and the known network of another owner has its
// place. The numbers of places are those of the server: password hashes, requests and
// connections.
func TestOneOwnersProofsFillNoPool(t *testing.T) {
	t.Parallel()
	for _, places := range []int{56, 512, 2048} {
		known := NewKnown(8192)
		known.Add("alice's", "alice")
		for i := range 4 * places {
			known.Add(fmt.Sprint("mallory's ", i), "mallory")
		}
		p := NewPool(Limits{Places: places, PerPeer: places, Known: known})
		for i := range 4 * places {
			p.Take(fmt.Sprint("mallory's ", i), Stranger, func() {})
		}
		admitted := 0
		for i := range 4 * places {
			if p.Take(fmt.Sprint("unknown ", i), Stranger, func() {}) != nil {
				admitted++
			}
		}
		t.Logf("%d places: %d of %d unknown networks were admitted", places, admitted, 4*places)
		if admitted == 0 {
			t.Errorf("%d places: the known networks of one owner keep out every unknown network", places)
		}
		if p.Take("alice's", Stranger, func() { t.Error("a known network has lost its place") }) == nil {
			t.Errorf("%d places: no place for the known network of another owner", places)
		}
	}
}
