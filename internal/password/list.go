package password

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxListed bounds the passwords of a List, and so the memory: 128 MiB, and twice as much
// while the list is read.
const maxListed = 16 << 20

// byteOrderMark holds the character that some editors write before the first line of a UTF-8
// file.
const byteOrderMark = "\ufeff"

// List holds passwords that a [Policy] refuses, without regard to case. A List keeps 64 bits of a
// keyed hash of each password: 8 bytes, and by chance a List refuses a password that is not in
// the list, once in a trillion times at most. A List never changes, so goroutines can share a
// List.
type List struct {
	seed   maphash.Seed
	hashes []uint64 // the hashes of the passwords, sorted
}

// ReadList reads a list of passwords, one a line. ReadList leaves out lines that are no passwords,
// such as lines that are not UTF-8, and passwords of fewer than least characters, which
// [Policy.Check] refuses in any case.
//
// Errors: errors of r; if r holds no password at all; if r holds more than 16,777,216
// passwords of at least least characters.
func ReadList(r io.Reader, least int) (*List, error) { return readList(r, least, maxListed) }

func readList(r io.Reader, least, most int) (*List, error) {
	l, any := &List{seed: maphash.MakeSeed()}, false
	lines := bufio.NewReaderSize(r, MaxLength+len("\r\n"))
	if mark, _ := lines.Peek(len(byteOrderMark)); string(mark) == byteOrderMark {
		_, _ = lines.Discard(len(byteOrderMark))
	}
	for {
		line, err := readLine(lines)
		if err != nil && err != io.EOF {
			return nil, err
		}
		if len(line) >= least || !any { // most lines of a long list are shorter than least, and need no normalization
			if pw, malformed := Parse(string(line)); malformed == nil {
				any = true
				if text := pw.reveal(); utf8.RuneCountInString(text) >= least {
					l.hashes = append(l.hashes, l.hash(text))
				}
			}
		}
		switch {
		case len(l.hashes) > most:
			return nil, fmt.Errorf("holds more than %d passwords of at least %d characters: give a shorter list", most, least)
		case err == io.EOF && !any:
			return nil, errors.New("holds no password: give one password a line, as UTF-8")
		case err == io.EOF:
			slices.Sort(l.hashes)
			l.hashes = slices.Clone(slices.Compact(l.hashes)) // a copy, which has no unused capacity
			return l, nil
		}
	}
}

// readLine returns a line without the line break; empty for a line longer than the reader's
// buffer, since such a line is no password. The result is valid until the next call. readLine
// keeps one buffer in memory, however long the line.
//
// Errors: io.EOF at the end of the file, together with the last line; the errors of the reader.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		for err == bufio.ErrBufferFull {
			_, err = r.ReadSlice('\n')
		}
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), err
}

// Len returns the number of passwords in the list.
func (l *List) Len() int {
	if l == nil {
		return 0
	}
	return len(l.hashes)
}

// Footprint returns how much memory the list takes, in bytes.
func (l *List) Footprint() int64 { return 8 * int64(l.Len()) }

func (l *List) contains(text string) bool {
	if l == nil {
		return false
	}
	_, found := slices.BinarySearch(l.hashes, l.hash(text))
	return found
}

func (l *List) hash(text string) uint64 { return maphash.String(l.seed, strings.ToLower(text)) }
