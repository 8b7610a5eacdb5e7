package password

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadList(t *testing.T) {
	long := strings.Repeat("x", MaxLength)
	text := "\ufefffirst after the mark\r\nshort\n\n" +
		"broken \xff and long enough\nwith a \x07 bell and long enough\n" +
		long + "\r\n" + "too " + long + "\n" + strings.Repeat("y", 1<<20) + "\n" +
		"Last In The File, Without An End"
	list, err := ReadList(iotest.OneByteReader(strings.NewReader(text)), DefaultMinLength)
	if err != nil {
		t.Fatal(err)
	}
	if list.Len() != 3 || list.Footprint() != 24 {
		t.Errorf("the list has %d passwords in %d bytes, want 3 in 24", list.Len(), list.Footprint())
	}
	for text, want := range map[string]bool{
		"first after the mark": true, long: true, "last in the file, without an end": true,
		"short": false, "": false, "first": false, "too " + long: false, long[1:]: false,
	} {
		if got := list.contains(text); got != want {
			t.Errorf("the list contains a text of %d bytes: %t", len(text), got)
		}
	}
	if (*List)(nil).contains("") || (*List)(nil).Len() != 0 {
		t.Error("no list contains something")
	}
}

func TestReadListRefuses(t *testing.T) {
	broken := errors.New("the disk is broken")
	for name, r := range map[string]io.Reader{
		"empty":          strings.NewReader(""),
		"empty lines":    strings.NewReader("\n\r\n\n"),
		"no text":        bytes.NewReader([]byte{0x1f, 0x8b, 8, 0, 0xff, 0xfe}),
		"a failing read": io.MultiReader(strings.NewReader("a password of the list\n"), iotest.ErrReader(broken)),
	} {
		if list, err := ReadList(r, DefaultMinLength); err == nil || list != nil {
			t.Errorf("%s: got %v passwords, want an error", name, list.Len())
		}
	}
	// A list that has only short passwords is no error: the least length refuses all short
	// passwords.
	if list, err := ReadList(strings.NewReader("123456\n"), DefaultMinLength); err != nil || list.Len() != 0 {
		t.Errorf("a list of short passwords: %v", err)
	}
	const most = 1000
	if _, err := readList(&numbers{n: most}, DefaultMinLength, most); err != nil {
		t.Errorf("the longest list: %v", err)
	}
	if _, err := readList(&numbers{n: most + 1}, DefaultMinLength, most); err == nil || !strings.Contains(err.Error(), fmt.Sprint(most)) {
		t.Errorf("a list that is too long: got %v, want an error with the bound", err)
	}
}

// numbers reads as n different lines.
type numbers struct {
	n    int
	rest []byte
}

func (r *numbers) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.n == 0 {
			return 0, io.EOF
		}
		r.n--
		r.rest = fmt.Appendf(r.rest[:0], "number %016d\n", r.n)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// A list takes 8 bytes for each password, however long the passwords are.
func TestMemoryOfAList(t *testing.T) {
	const n = 1 << 20
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	list, err := ReadList(&numbers{n: n}, DefaultMinLength)
	if err != nil || list.Len() != n {
		t.Fatalf("%d passwords, %v", list.Len(), err)
	}
	if grown := int64(heap()) - int64(before); grown > 12*n {
		t.Errorf("a list of %d passwords takes %d bytes", n, grown)
	}
	runtime.KeepAlive(list)
}

func BenchmarkReadList(b *testing.B) {
	const n = 1 << 20
	path := filepath.Join(b.TempDir(), "list")
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(file, &numbers{n: n}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		if _, err := ReadList(file, DefaultMinLength); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/password")
}

// The check of the parts is bounded: a password of the greatest length that isFewParts looks at
// takes less time than a hash.
func BenchmarkCheck(b *testing.B) {
	for name, text := range map[string]string{
		"ordinary": "correct horse battery staple", "worst": strings.Repeat("ab1", 21) + "x", "longest": strings.Repeat("ab", MaxLength/2-1) + "xy",
	} {
		pw := parse(b, text)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_ = Policy{}.Check(pw, "alice")
			}
		})
	}
}
