package share

// places is a list of places, the newest at the back. Each place holds its own links, since
// every call of the server moves a place from list to list: no move takes memory. A place
// is in one list at a time. Pool.mu guards the list. The zero value is an empty list.
type places struct {
	front, back *Place
	length      int
}

// pushBack adds a place as the newest.
func (l *places) pushBack(pl *Place) {
	pl.before = l.back
	if l.back == nil {
		l.front = pl
	} else {
		l.back.after = pl
	}
	l.back = pl
	l.length++
}

// remove removes a place of the list.
func (l *places) remove(pl *Place) {
	if pl.before == nil {
		l.front = pl.after
	} else {
		pl.before.after = pl.after
	}
	if pl.after == nil {
		l.back = pl.before
	} else {
		pl.after.before = pl.before
	}
	pl.before, pl.after = nil, nil
	l.length--
}
