package store

// These constants name the settings that [Copy] writes.
const (
	// movedTo is set in an embedded database that was moved away. The value is the URI
	// of the new database, without a password.
	movedTo = "moved_to"
	// copyID has the same random value in the source and in the target of a copy. By the value,
	// a later call of [Copy] recognizes the target that an interrupted call has filled.
	copyID = "copy"
	// copyIncomplete is set in the target of an unfinished copy, while the source may
	// still acknowledge changes that the target does not have.
	copyIncomplete = "copy_incomplete"
)

// Usable returns an error for a database that was moved away by [Copy], and for a
// database filled by an interrupted copy. [Open] calls Usable. A copy may begin after
// Open, so a transaction that must not run on such a database calls Usable again.
// Errors: a *MovedError; ErrIncomplete.
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
