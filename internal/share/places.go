package share

// places holds a linked list of places, the newest at the back. Every call of the server moves
// a place from list to list. So each [Place] holds its own links, and a move allocates nothing.
// A place is in one list at a time. Pool.mu guards the list. The zero value is an empty list.
type places struct {
	front, back *Place
	length      int
}

// pushBack adds a place at the back of the list.
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

// remove removes a place from the list that holds the place.
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
