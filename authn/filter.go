package authn

import "encoding/binary"

// A filter says of most ids which are not in a map that they are not, by a look at
// one bit: nearly every token speaks for a session that has not ended, and a
// million entries are too many for the processor's caches. Of the others it says
// that they may be there. (It is a Bloom filter of one hash; ids are random, so the
// hash need not be good.)
type filter struct {
	bits  []uint64
	shift uint // of a hash, to an index
}

// bitsPerEntry is a trade: one id in so many is looked up in vain when the filter
// is full, and it takes an eighth of so many bytes for each entry.
const bitsPerEntry = 16

// newFilter has room for so many entries.
func newFilter(entries int) *filter {
	f := &filter{shift: 64 - 6}
	for 1<<(64-f.shift) < entries*bitsPerEntry {
		f.shift--
	}
	f.bits = make([]uint64, 1<<(64-f.shift)/64)
	return f
}

func (f *filter) room() int { return len(f.bits) * 64 / bitsPerEntry }

func (f *filter) index(id *[idLength]byte) uint64 {
	h := binary.LittleEndian.Uint64(id[:8]) ^ binary.LittleEndian.Uint64(id[8:])<<1
	return h * 0x9e3779b97f4a7c15 >> f.shift
}

func (f *filter) add(id *[idLength]byte) {
	i := f.index(id)
	f.bits[i/64] |= 1 << (i % 64)
}

func (f *filter) mayHave(id *[idLength]byte) bool {
	i := f.index(id)
	return f.bits[i/64]&(1<<(i%64)) != 0
}
