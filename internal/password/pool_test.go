package password

import (
	"context"
	"encoding/base64"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/argon2"
)

var somebody = Stranger("192.0.2.1")

// compare compares in a turn of its own.
func compare(t testing.TB, pool *Pool, pw Password, phc string) (match, rehash bool, err error) {
	t.Helper()
	turn, err := pool.Enter(t.Context(), somebody)
	if err != nil {
		return false, false, err
	}
	defer turn.End()
	return turn.Compare(t.Context(), pw, phc)
}

// cheap sets the cost of a real hash to microseconds.
var cheap = Params{Memory: 8, Time: 1, Threads: 1}

func TestHashIsArgon2id(t *testing.T) {
	pool := NewPool(Config{})
	phc, err := pool.Hash(t.Context(), somebody, parse(t, "cafe\u0301 au lait"))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || strings.Join(parts[:4], "$") != "$argon2id$v=19$m=19456,t=2,p=1" {
		t.Fatalf("got hash %s, want argon2id with the default parameters", phc)
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil || len(salt) != 16 {
		t.Fatalf("got salt %x, error %v, want 16 bytes", salt, err)
	}
	tag := argon2.IDKey([]byte("caf\u00e9 au lait"), salt, 2, 19456, 1, 32)
	if want := base64.RawStdEncoding.EncodeToString(tag); parts[5] != want {
		t.Errorf("got tag %s, want %s", parts[5], want)
	}
}

// TestCompareKnownAnswer uses a test vector of the reference implementation
// (P-H-C/phc-winner-argon2, test.c).
func TestCompareKnownAnswer(t *testing.T) {
	const phc = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	match, rehash, err := compare(t, NewPool(Config{}), parse(t, "password"), phc)
	if !match || !rehash || err != nil { // rehash: the vector's salt is shorter than saltLength
		t.Errorf("got match %v, rehash %v, error %v; want true, true, nil", match, rehash, err)
	}
}

func TestCompare(t *testing.T) {
	pool := NewPool(Config{Params: cheap})
	pw := parse(t, "correct horse")
	phc, err := pool.Hash(t.Context(), somebody, pw)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pool.Hash(t.Context(), somebody, pw)
	if err != nil || other == phc {
		t.Fatalf("two hashes of the same password: %s and %s, error %v; want different hashes", phc, other, err)
	}
	for _, tt := range []struct {
		name, password, phc string
		match               bool
	}{
		{"right", "correct horse", phc, true},
		{"right, other kind of space", "correct\u00a0horse", phc, true},
		{"right, other salt", "correct horse", other, true},
		{"wrong", "correct  horse", phc, false},
		{"wrong case", "Correct horse", phc, false},
		{"beginning", "correct", phc, false},
		{"unknown user", "correct horse", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			match, rehash, err := compare(t, pool, parse(t, tt.password), tt.phc)
			if match != tt.match || rehash || err != nil {
				t.Errorf("got match %v, rehash %v, error %v; want match %v alone", match, rehash, err, tt.match)
			}
		})
	}
}

func TestCompareRehash(t *testing.T) {
	pw, wrong := parse(t, "correct horse"), parse(t, "battery staple")
	old := NewPool(Config{Params: cheap})
	now := NewPool(Config{Params: Params{Memory: 16, Time: 1, Threads: 1}})
	phc, err := old.Hash(t.Context(), somebody, pw)
	if err != nil {
		t.Fatal(err)
	}
	if match, rehash, err := compare(t, now, pw, phc); !match || !rehash || err != nil {
		t.Errorf("right password: got match %v, rehash %v, error %v; want true, true, nil", match, rehash, err)
	}
	if match, rehash, err := compare(t, now, wrong, phc); match || rehash || err != nil {
		t.Errorf("wrong password: got match %v, rehash %v, error %v; want false, false, nil", match, rehash, err)
	}
	phc, err = now.Hash(t.Context(), somebody, pw)
	if err != nil {
		t.Fatal(err)
	}
	if match, rehash, err := compare(t, old, pw, phc); !match || rehash || err != nil {
		t.Errorf("lower parameters: got match %v, rehash %v, error %v; want true, false, nil", match, rehash, err)
	}
}

// TestUnknownUserNeverMatches makes every hash equal to the decoy's tag. An unknown user
// must still not log in.
func TestUnknownUserNeverMatches(t *testing.T) {
	pool := NewPool(Config{})
	pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, keyLen uint32) []byte {
		return slices.Clone(pool.decoy.tag)
	}
	match, rehash, err := compare(t, pool, parse(t, "correct horse"), "")
	if match || rehash || err != nil {
		t.Errorf("got match %v, rehash %v, error %v; want false, false, nil", match, rehash, err)
	}
}

// TestUnknownUserCostsTheSame compares the parameters of the hash for a known and for an
// unknown user. Equal parameters take equal time, so the test needs no stopwatch.
func TestUnknownUserCostsTheSame(t *testing.T) {
	for _, params := range []Params{{}, cheap, {Memory: 64, Time: 3, Threads: 2}} {
		type call struct {
			password, salt int // lengths in bytes
			time, memory   uint32
			threads        uint8
			keyLen         uint32
		}
		var calls []call
		pool := NewPool(Config{Params: params})
		pool.derive = func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte {
			calls = append(calls, call{len(password), len(salt), time, memory, threads, keyLen})
			return make([]byte, keyLen)
		}
		pw := parse(t, "correct horse")
		known := newRecord(pool.params)
		known.tag[0] = 1 // derive returns zeros, so the tag never matches
		for _, phc := range []string{known.encode(), ""} {
			if match, _, err := compare(t, pool, pw, phc); match || err != nil {
				t.Fatalf("got match %v, error %v; want false, nil", match, err)
			}
		}
		if len(calls) != 2 || calls[0] != calls[1] {
			t.Errorf("%+v: a known and an unknown user cost different hashes: %+v", params, calls)
		}
	}
}

// TestOldHashesCostTheSame counts the work of a comparison with a hash of each cost: the
// memory times the passes takes the time.
func TestOldHashesCostTheSame(t *testing.T) {
	pool := NewPool(Config{})
	var work, hashes, most uint32
	pool.derive = func(_, _ []byte, time, memory uint32, _ uint8, keyLen uint32) []byte {
		work += time * memory
		most = max(most, memory)
		hashes++
		return make([]byte, keyLen)
	}
	want := Default.Memory * Default.Time
	for _, params := range []Params{Default, cheap, {Memory: 64, Time: 3}, {Memory: 4096, Time: 3}, {Memory: 9728, Time: 2}, {Memory: 19456, Time: 1}, {Memory: 12288, Time: 3}, {Memory: 38912, Time: 1}} {
		work, hashes, most = 0, 0, 0
		old := newRecord(params.clamped())
		old.tag[0] = 1 // derive returns zeros, so the tag never matches
		if match, _, err := compare(t, pool, parse(t, "correct horse"), old.encode()); match || err != nil {
			t.Fatalf("got match %v, error %v; want false, nil", match, err)
		}
		if work > want || work+8 < want || hashes > 3 || most > max(params.Memory, Default.Memory) {
			t.Errorf("%+v: %d KiB in %d hashes of at most %d KiB, want %d", params, work, hashes, most, want)
		}
	}
}

func TestCompareRefusesMalformedHash(t *testing.T) {
	pool := NewPool(Config{})
	pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, _ uint32) []byte {
		t.Error("Compare computed a hash")
		return nil
	}
	hostile := strings.Replace(somePHC, "m=19456", "m=4294967295", 1)
	for _, phc := range []string{"x", somePHC[1:], hostile} {
		match, rehash, err := compare(t, pool, parse(t, "correct horse"), phc)
		if match || rehash || err == nil {
			t.Errorf("%s: got match %v, rehash %v, error %v; want an error alone", phc, match, rehash, err)
		}
	}
}

func TestZeroValues(t *testing.T) {
	pool, pw := NewPool(Config{Params: cheap}), parse(t, "correct horse")
	if _, err := pool.Hash(t.Context(), somebody, Password{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("Hash of the zero Password: got error %v, want ErrMalformed", err)
	}
	if match, _, err := compare(t, pool, Password{}, ""); match || !errors.Is(err, ErrMalformed) {
		t.Errorf("Compare of the zero Password: got match %v, error %v; want ErrMalformed", match, err)
	}
	var zero Pool
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a wait for a slot would never end
	defer cancel()
	if _, err := zero.Hash(ctx, somebody, pw); !errors.Is(err, ErrOverloaded) {
		t.Errorf("zero Pool: got error %v, want ErrOverloaded", err)
	}
	if got := zero.RetryAfter(); got != 100*time.Millisecond {
		t.Errorf("zero Pool: got RetryAfter %v, want 100ms", got)
	}
}

func TestConfigDefaults(t *testing.T) {
	cores := max(1, runtime.GOMAXPROCS(0)-1)
	hash := Default.Footprint()
	for _, tt := range []struct{ in, want Config }{
		{Config{}, Config{Default, 0, cores, 64 * cores, 64 * cores / 8, nil, Policy{}}},
		{Config{Parallel: 3}, Config{Default, 0, 3, 192, 24, nil, Policy{}}},
		{Config{Parallel: 2, Queue: 1}, Config{Default, 0, 2, 1, 0, nil, Policy{}}},
		{Config{Parallel: 2, Queue: 4, Reserved: 9}, Config{Default, 0, 2, 4, 4, nil, Policy{}}},
		{Config{Parallel: 2, Queue: 40, Reserved: -1}, Config{Default, 0, 2, 40, 0, nil, Policy{}}},
		{Config{Parallel: 2, Queue: -1}, Config{Default, 0, 2, 128, 16, nil, Policy{}}},
		{Config{Params: Params{Threads: 16}}, Config{Params{19456, 2, 16}, 0, max(1, cores/16), 64 * max(1, cores/16), 8 * max(1, cores/16), nil, Policy{}}},
		{Config{Parallel: 31, Memory: 256 << 20}, Config{Default, 256 << 20, 4, 256, 32, nil, Policy{}}},
		{Config{Parallel: 31, Memory: 3*hash - 1}, Config{Default, 3*hash - 1, 2, 128, 16, nil, Policy{}}},
		{Config{Parallel: 31, Memory: 1}, Config{Default, 1, 1, 64, 8, nil, Policy{}}},
		{Config{Parallel: 2, Memory: 1 << 40}, Config{Default, 1 << 40, 2, 128, 16, nil, Policy{}}},
	} {
		if got := tt.in.withDefaults(); got != tt.want {
			t.Errorf("%+v: got %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

// TestPoolIsSafeForConcurrentUse computes real hashes outside of a synctest bubble, for
// the race detector.
func TestPoolIsSafeForConcurrentUse(t *testing.T) {
	pool := NewPool(Config{Params: cheap, Parallel: 4, Queue: 40})
	pw := parse(t, "correct horse")
	var done, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			caller := []Caller{Stranger("a"), Stranger("b"), User("c"), Admin("d")}[i%4]
			_, err := pool.Hash(t.Context(), caller, pw)
			pool.RetryAfter()
			switch {
			case errors.Is(err, ErrOverloaded):
				refused.Add(1)
			case err != nil:
				t.Error(err)
			default:
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if done.Load() == 0 || done.Load()+refused.Load() != 200 {
		t.Errorf("%d callers done, %d refused; want 200 callers", done.Load(), refused.Load())
	}
	expectEmpty(t, pool)
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := NewPool(Config{Parallel: 2, Queue: 1000})
		pw := parse(t, "correct horse")
		took := 40 * time.Millisecond
		pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, keyLen uint32) []byte {
			time.Sleep(took) // by the fake clock of synctest
			return make([]byte, keyLen)
		}
		expect := func(name string, want time.Duration) {
			t.Helper()
			if got := pool.RetryAfter(); got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		hash := func() { _, _ = pool.Hash(t.Context(), somebody, pw) }
		startMany := func(n int) (wait func()) {
			var wg sync.WaitGroup
			for range n {
				wg.Go(hash)
			}
			synctest.Wait()
			return wg.Wait
		}

		expect("empty pool", 100*time.Millisecond)
		wait := startMany(100)
		expect("before the first hash: 100 callers, 50 ms each, two at a time", 2500*time.Millisecond)
		wait()
		wait = startMany(100)
		expect("100 callers, 40 ms each, two at a time", 2*time.Second)
		wait()
		wait = startMany(1000)
		expect("1000 callers, 40 ms each", 10*time.Second)
		wait()

		took = 80 * time.Millisecond
		for range 50 {
			hash()
		}
		if got := pool.average; got < 79*time.Millisecond || got > took {
			t.Errorf("after 50 hashes of 80 ms, the average is %v, want 79 to 80 ms", got)
		}
	})
}

// BenchmarkHash compares a hash in the pool with a bare argon2 hash. The pool adds much
// less than a thousandth.
func BenchmarkHash(b *testing.B) {
	pw := parse(b, "correct horse")
	b.Run("pool", func(b *testing.B) {
		pool := NewPool(Config{})
		b.ReportAllocs()
		for b.Loop() {
			if _, err := pool.Hash(b.Context(), somebody, pw); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("argon2", func(b *testing.B) {
		salt := make([]byte, saltLength)
		b.ReportAllocs()
		for b.Loop() {
			argon2.IDKey([]byte(pw.reveal()), salt, Default.Time, Default.Memory, Default.Threads, tagLength)
		}
	})
	b.Run("pool with a free hash", func(b *testing.B) {
		pool := NewPool(Config{})
		tag := make([]byte, tagLength)
		pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, _ uint32) []byte { return tag }
		for b.Loop() {
			if _, _, err := compare(b, pool, pw, somePHC); err != nil {
				b.Fatal(err)
			}
		}
	})
}
