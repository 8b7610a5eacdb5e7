package issuer_test

import (
	"encoding/base64"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
)

const (
	maxAge = time.Minute
	age    = maxAge + time.Second // long enough that every cache knows a key
)

// ring is a database whose caches keep the key set for a minute.
func ring(t *testing.T) (*issuer.Keyring, *store.Store, *seal.Keys) {
	t.Helper()
	s, master, _ := setup(t, token.EdDSA)
	err := feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error {
		return errors.Join(issuer.SetMaxAge(tx.Tx, maxAge), tx.RaiseMaxLifetime(5*time.Minute))
	})
	if err != nil {
		t.Fatal(err)
	}
	return issuer.NewKeyring(s, feed.Direct(s), keySet(master), audit.New(s, slog.New(slog.DiscardHandler))), s, master
}

func rotate(t *testing.T, k *issuer.Keyring, alg token.Algorithm) issuer.Key {
	t.Helper()
	key, err := k.Rotate(t.Context(), caller.AtCommandLine, alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func revoke(t *testing.T, k *issuer.Keyring, kid string) issuer.Key {
	t.Helper()
	key, err := k.Revoke(t.Context(), caller.AtCommandLine, kid)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// inState lists the keys in a state.
func inState(t *testing.T, s *store.Store, want issuer.State) []issuer.Key {
	t.Helper()
	keys, err := issuer.ListRows(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	var found []issuer.Key
	for _, k := range keys {
		if k.State == want {
			found = append(found, k)
		}
	}
	return found
}

func signing(t *testing.T, s *store.Store) issuer.Key {
	t.Helper()
	keys := inState(t, s, issuer.Signing)
	if len(keys) != 1 {
		t.Fatalf("%d keys sign: %+v", len(keys), keys)
	}
	return keys[0]
}

func TestRotateAtOnceWhenEveryCacheKnowsTheNextKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		before, next := signing(t, s), inState(t, s, issuer.Next)[0]
		time.Sleep(age)
		if key := rotate(t, k, ""); key.KID != next.KID || key.State != issuer.Signing {
			t.Fatalf("rotated to %+v, want %s", key, next.KID)
		}
		retired := inState(t, s, issuer.Retired)
		if len(retired) != 1 || retired[0].KID != before.KID || retired[0].VerifiesUntil.Sub(retired[0].SignsUntil) < 5*time.Minute {
			t.Fatalf("retired %+v", retired)
		}
		if len(inState(t, s, issuer.Next)) != 1 {
			t.Fatal("no key signs next")
		}
	})
}

func TestRotateWaitsForTheCaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		time.Sleep(age)
		first := rotate(t, k, "")
		var tasks sync.WaitGroup
		for range 3 {
			tasks.Go(func() {
				if _, err := k.Rotate(t.Context(), caller.AtCommandLine, ""); err != nil {
					t.Error(err)
				}
			})
		}
		tasks.Wait()
		if now := signing(t, s); now.KID != first.KID {
			t.Fatal("a key signs that a cache may not know")
		}
		second := rotate(t, k, "")
		if wait := time.Until(second.SignsFrom); wait <= age-time.Second || wait > age {
			t.Fatalf("signs in %v", wait)
		}
		time.Sleep(age)
		if now := signing(t, s); now.KID != second.KID {
			t.Fatalf("%s signs, want %s: three callers made one rotation", now.KID, second.KID)
		}
	})
}

func TestRotateToAnotherAlgorithm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, master := ring(t)
		time.Sleep(time.Hour)
		old := signing(t, s)
		key := rotate(t, k, token.ES256)
		if key.Algorithm != "ES256" || time.Until(key.SignsFrom) != age {
			t.Fatalf("rotated to %+v", key)
		}
		if signing(t, s).KID != old.KID {
			t.Fatal("the old key has stopped before the new one signs")
		}
		time.Sleep(age)
		if signing(t, s).KID != key.KID || inState(t, s, issuer.Next)[0].Algorithm != "ES256" {
			t.Fatal("the new algorithm does not sign, or not next")
		}
		subject := alice
		subject.SessionEnd = time.Now().Add(time.Hour)
		if _, _, err := open(t, s, master).Mint(t.Context(), time.Now(), subject); err != nil {
			t.Fatal(err)
		}
	})
}

// If a refresh is committed before the withdrawal of the signing key, and its token is minted
// after the withdrawal, the next key signs the token, although the next key begins to sign
// later.
func TestMintForATransactionBeforeTheWithdrawal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, master := ring(t)
		time.Sleep(2 * age)
		keys := keySet(master)
		load(t, s, keys)
		i := issuer.New(s, keys, name, "", 5*time.Minute)
		granted := time.Now()
		time.Sleep(time.Millisecond)
		successor := revoke(t, k, signing(t, s).KID)
		load(t, s, keys)
		subject := alice
		subject.SessionEnd = time.Now().Add(time.Hour)
		raw, _, err := i.Mint(t.Context(), granted, subject)
		if err != nil {
			t.Fatal(err)
		}
		header, _, _ := strings.Cut(raw, ".")
		if decoded, err := base64.RawURLEncoding.DecodeString(header); err != nil || !strings.Contains(string(decoded), successor.KID) {
			t.Errorf("signed with %s, %v; want %s", decoded, err, successor.KID)
		}
	})
}

// Keys that were published at the same instant have no order in time, so a rotation must not
// take the algorithm from the newest row.
func TestRotateKeepsTheAlgorithm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		time.Sleep(2 * age)
		undated := func() issuer.Key {
			keys := inState(t, s, issuer.Next)
			return keys[slices.IndexFunc(keys, func(k issuer.Key) bool { return k.SignsFrom.IsZero() })]
		}
		for range 8 {
			for _, alg := range []token.Algorithm{token.ES256, token.EdDSA} {
				rotate(t, k, alg)
				revoke(t, k, undated().KID)
				if next := undated(); next.Algorithm != string(alg) {
					t.Fatalf("after a revocation the next key is of %s, want %s", next.Algorithm, alg)
				}
			}
		}
	})
}

func TestRevoke(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T, *issuer.Keyring, *store.Store) (leaked, signs string){
		"the key that signs": func(t *testing.T, _ *issuer.Keyring, s *store.Store) (string, string) {
			return signing(t, s).KID, inState(t, s, issuer.Next)[0].KID
		},
		"the key that signs next": func(t *testing.T, _ *issuer.Keyring, s *store.Store) (string, string) {
			return inState(t, s, issuer.Next)[0].KID, signing(t, s).KID
		},
		"a key with a date": func(t *testing.T, k *issuer.Keyring, s *store.Store) (string, string) {
			return rotate(t, k, "").KID, signing(t, s).KID
		},
		"the key that signs, while its successor has a date": func(t *testing.T, k *issuer.Keyring, s *store.Store) (string, string) {
			successor := rotate(t, k, "")
			return signing(t, s).KID, successor.KID
		},
		"a retired key": func(t *testing.T, k *issuer.Keyring, s *store.Store) (string, string) {
			time.Sleep(age)
			old := signing(t, s)
			return old.KID, rotate(t, k, "").KID
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, s, _ := ring(t)
				leaked, want := prepare(t, k, s)
				for range 2 { // also the second time
					if got := revoke(t, k, leaked); got.KID != want || signing(t, s).KID != want {
						t.Fatalf("%s signs, want %s", got.KID, want)
					}
				}
				if gone := inState(t, s, issuer.Revoked); len(gone) != 1 || gone[0].KID != leaked {
					t.Fatalf("withdrawn: %+v", gone)
				}
				unseen := checkUnseen(t, s)
				rotate(t, k, "")
				time.Sleep(age)
				if signing(t, s).KID != unseen {
					t.Fatal("the key that no cache had seen does not sign")
				}
				rotate(t, k, "")
				time.Sleep(age)
				if signing(t, s).KID == unseen {
					t.Fatal("rotation has stopped")
				}
			})
		})
	}
}

// checkUnseen checks the keys just after a withdrawal. One key has just been published, and
// signs as soon as every cache can know the key. Another key is published too, has no date from
// which it signs, and follows the first key.
func checkUnseen(t *testing.T, s *store.Store) (unseen string) {
	t.Helper()
	undated := 0
	for _, key := range inState(t, s, issuer.Next) {
		switch {
		case key.SignsFrom.IsZero():
			undated++
		case unseen != "" || time.Since(key.PublishedAt) != 0 || time.Until(key.SignsFrom) != age:
			t.Errorf("%s was published %v ago, and signs in %v", key.KID, time.Since(key.PublishedAt), time.Until(key.SignsFrom))
		default:
			unseen = key.KID
		}
	}
	if unseen == "" || undated != 1 {
		t.Fatalf("the unseen key is %q, and %d keys sign next", unseen, undated)
	}
	return unseen
}

// A withdrawn key has no private half any more, and needs no master key.
func TestAWithdrawnKeyIsDestroyed(t *testing.T) {
	k, s, _ := ring(t)
	leaked := signing(t, s).KID
	revoke(t, k, leaked)
	for _, row := range rows(t, s) {
		if (row.KID == leaked) != (len(row.SealedKey) == 0) {
			t.Errorf("%s has a private half of %d bytes", row.KID, len(row.SealedKey))
		}
	}
}

func TestRevokeRefuses(t *testing.T) {
	k, s, _ := ring(t)
	if _, err := k.Revoke(t.Context(), caller.AtCommandLine, "no such key"); !errors.Is(err, issuer.ErrNotFound) {
		t.Fatalf("an unknown key: %v", err)
	}
	var nobody caller.Caller
	before := rows(t, s)
	if _, err := k.Revoke(t.Context(), nobody, signing(t, s).KID); !errors.Is(err, caller.ErrRevoked) {
		t.Fatalf("nobody: %v", err)
	}
	if _, err := k.Rotate(t.Context(), nobody, ""); !errors.Is(err, caller.ErrRevoked) {
		t.Fatalf("nobody: %v", err)
	}
	if len(rows(t, s)) != len(before) {
		t.Fatal("a refused call made a key")
	}
}

// Rotations at the same instant must not leave a key that signs for no time: the keys
// would have no order.
func TestRotationsAtOneInstant(t *testing.T) {
	for which := range 4 {
		synctest.Test(t, func(t *testing.T) {
			k, s, _ := ring(t)
			time.Sleep(2 * age)
			chain := []string{signing(t, s).KID}
			for _, alg := range []token.Algorithm{token.ES256, token.EdDSA, token.ES256} {
				chain = append(chain, rotate(t, k, alg).KID)
			}
			for _, key := range rows(t, s) {
				if !key.SignsUntil.IsZero() && !key.SignsUntil.After(key.SignsFrom) {
					t.Errorf("%s signs from %v until %v", key.KID, key.SignsFrom, key.SignsUntil)
				}
			}
			revoke(t, k, chain[which])
			for range 3 * 60 {
				checkChain(t, s, true)
				time.Sleep(time.Second)
			}
		})
	}
}

// After any sequence of rotations and withdrawals, one key signs at any moment, one signs next,
// a key signs only when every cache knows it (unless one leaked), and what it signed passes for
// as long as it lives.
func TestTheChainHasNoGaps(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		synctest.Test(t, func(t *testing.T) {
			s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, time.Duration(n).String()))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			master, err := seal.Create(filepath.Join(dir, time.Duration(n).String()+".key"))
			if err != nil {
				t.Fatal(err)
			}
			err = feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error {
				return errors.Join(issuer.Setup(tx.Tx, master, token.EdDSA), issuer.SetMaxAge(tx.Tx, maxAge), tx.RaiseMaxLifetime(5*time.Minute))
			})
			if err != nil {
				t.Fatal(err)
			}
			k := issuer.NewKeyring(s, feed.Direct(s), keySet(master), audit.New(s, slog.New(slog.DiscardHandler)))
			for range rapid.IntRange(1, 12).Draw(rt, "steps") {
				time.Sleep(time.Duration(rapid.Int64Range(0, int64(2*age)).Draw(rt, "wait")))
				leak := false
				switch rapid.SampledFrom([]string{"rotate", "EdDSA", "ES256", "revoke"}).Draw(rt, "what") {
				case "rotate":
					rotate(t, k, "")
				case "EdDSA":
					rotate(t, k, token.EdDSA)
				case "ES256":
					rotate(t, k, token.ES256)
				case "revoke":
					keys := rows(t, s)
					revoke(t, k, keys[rapid.IntRange(0, len(keys)-1).Draw(rt, "which")].KID)
					leak = true
				}
				checkChain(t, s, leak)
			}
		})
	})
}

func checkChain(t *testing.T, s *store.Store, leak bool) {
	t.Helper()
	now := signing(t, s)
	undated := 0
	for _, key := range rows(t, s) {
		switch {
		case !key.RevokedAt.IsZero():
		case key.SignsFrom.IsZero():
			undated++
		case !leak && key.SignsFrom.After(time.Now()) && key.SignsFrom.Sub(key.PublishedAt) < age:
			t.Fatalf("%s signs before every cache knows it", key.KID)
		case !key.SignsUntil.IsZero() && key.VerifiesUntil.Sub(key.SignsUntil) < 5*time.Minute:
			t.Fatalf("%s dies before its tokens", key.KID)
		}
	}
	if undated != 1 {
		t.Fatalf("%d keys sign next, beside %s", undated, now.KID)
	}
}

// A key is removed when its last token has expired by the clock and by the ticks. A clock that
// is a day ahead for a moment removes no key: tokens of the key still pass by the right clock.
func TestAKeyIsRemovedByTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		storetest.Wait(t, s, time.Hour)
		old := signing(t, s).KID
		rotate(t, k, "")
		time.Sleep(24 * time.Hour) // no server counts a tick, so the time passes by the clock alone
		kept := func() bool {
			return slices.ContainsFunc(rows(t, s), func(k *store.SigningKey) bool { return k.KID == old })
		}
		rotate(t, k, "")
		revoke(t, k, inState(t, s, issuer.Next)[0].KID)
		if !kept() {
			t.Error("the clock alone has removed the key")
		}
		storetest.Wait(t, s, 40*time.Minute)
		rotate(t, k, "")
		if kept() {
			t.Error("the key is kept")
		}
	})
}

// Replicas that all look at their clocks make one rotation in each lifetime of a key, and each
// key is known to every cache before it signs.
func TestRotateOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s, _ := ring(t)
		const life = 24 * time.Hour
		begun := time.Now()
		signed := map[string]time.Time{}
		for time.Since(begun) < 10*life {
			var replicas sync.WaitGroup
			for range 3 {
				replicas.Go(func() {
					if err := k.RotateOld(t.Context(), life); err != nil {
						t.Error(err)
					}
				})
			}
			replicas.Wait()
			checkChain(t, s, false)
			now := signing(t, s)
			signed[now.KID] = now.SignsFrom
			time.Sleep(20 * time.Minute)
		}
		if len(signed) != 10 {
			t.Errorf("%d keys have signed in ten lives", len(signed))
		}
		storetest.Wait(t, s, 40*time.Minute)
		rotate(t, k, "")
		if left := len(rows(t, s)); left > 4 {
			t.Errorf("%d keys are left", left)
		}
	})
}

func TestReseal(t *testing.T) {
	k, s, master := ring(t)
	path := filepath.Join(t.TempDir(), "master")
	reseal := func(keys *seal.Keys) (n int) {
		t.Helper()
		if err := s.Write(t.Context(), func(tx *store.Tx) (err error) { n, err = issuer.Reseal(tx, keys); return err }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := reseal(master); n != 0 {
		t.Errorf("%d keys were sealed under another key than the only one", n)
	}
	if _, err := seal.Create(path); err != nil {
		t.Fatal(err)
	}
	stranger, err := seal.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), func(tx *store.Tx) error { _, err := issuer.Reseal(tx, stranger); return err }); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("resealed by a stranger's key: %v", err)
	}
	open(t, s, master)
	rotate(t, k, "")
}

// If the clock was ahead at the first start, or at one or several rotations, keys begin to sign
// in the future. After the clock is right again, a further rotation corrects this. At every time
// one key signs, and later rotations work.
func TestARotationInTheWrongTime(t *testing.T) {
	const day = 24 * time.Hour
	for name, ahead := range map[string]int{"first start": 0, "one rotation": 1, "three rotations": 3} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				k, s, master := ring(t)
				for range ahead {
					time.Sleep(age)
					rotate(t, k, "")
				}
				// The clock of a bubble cannot be set back: the keys are set ahead instead.
				const set = 10 * day
				err := k.EditRows(t.Context(), func(row *store.SigningKey) {
					right := ahead > 0 && row.SignsFrom.Equal(began) // the key began to sign before the clock was set ahead
					for _, at := range []*time.Time{&row.SignsFrom, &row.SignsUntil, &row.VerifiesUntil} {
						if !at.IsZero() && !(right && at == &row.SignsFrom) {
							*at = at.Add(set)
						}
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				signs := func(when string) {
					t.Helper()
					if _, _, err := open(t, s, master).Mint(t.Context(), time.Now(), issuer.Subject{
						UserID: "u", Username: "n", SessionID: "s", Audience: []string{"a"}, SessionEnd: time.Now().Add(time.Hour)}); err != nil {
						t.Errorf("%s: %v", when, err)
					}
				}
				signs("before")
				key := rotate(t, k, "")
				if wait := time.Until(key.SignsFrom); wait > age+time.Second {
					t.Errorf("the key signs in %v", wait)
				}
				signs("at once")
				time.Sleep(age + time.Second)
				signs("later")
				for range 3 {
					next := rotate(t, k, "")
					if next.KID == key.KID || time.Until(next.SignsFrom) > age+time.Second {
						t.Errorf("the next rotation: %+v", next)
					}
					time.Sleep(2*age + time.Second)
					signs("after the next rotation")
					key = next
				}
				keys, err := issuer.List(t.Context(), s, master)
				if err != nil {
					t.Fatal(err)
				}
				signing := 0
				for _, k := range keys {
					if k.State == issuer.Signing {
						signing++
					}
				}
				if signing != 1 {
					t.Errorf("%d keys sign: %+v", signing, keys)
				}
			})
		})
	}
}
