package store

// Settings written by [Copy].
const (
	// movedTo is in a database that was moved away: the target, without a password.
	movedTo = "moved_to"
	// copyID is the same random text in the source and in the target of a copy.
	copyID = "copy"
	// copyIncomplete is in a target while the source may still acknowledge changes
	// that the target does not have.
	copyIncomplete = "copy_incomplete"
)

// Usable refuses a database that was moved away, or was filled by an interrupted copy.
// Open checks with Usable. A copy may begin after Open, so a transaction that depends on
// the answer must call Usable again. Errors: *MovedError; ErrIncomplete.
func (tx *Tx) Usable() error {
	to, err := tx.Setting(movedTo)
	if err != nil {
		return err
	}
	if to != "" {
		return &MovedError{To: to}
	}
	id, err := tx.Setting(copyIncomplete)
	if err == nil && id != "" {
		err = ErrIncomplete
	}
	return err
}
