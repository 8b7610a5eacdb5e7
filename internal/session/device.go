package session

import (
	"errors"

	"github.com/watchword-auth/watchword/internal/store"
)

// knownDevices is the number of newest sessions of a user that are known devices. A known
// device has a count of wrong guesses of its own. knownDevices is small, since a thief with
// many old refresh tokens of the user could guess passwords with the count of each device.
const knownDevices = 10

// Device returns the id of the session of a refresh token, if the token is authentic, and ""
// for any other text. Device reads nothing from the database. [Sessions.Knows] reads whether
// the session is a known device.
func (s *Sessions) Device(refreshToken string) (sessionID string) {
	g, err := s.macs.parse(refreshToken)
	if err != nil {
		return ""
	}
	return g.sessionID
}

// Knows reports whether a session is a known device of a user: one of the user's newest
// sessions, ended or not. For the zero User, Knows returns false.
func (s *Sessions) Knows(tx *store.Tx, u *store.User, sessionID string) (bool, error) {
	row, err := tx.Session(sessionID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case row.UserID != u.ID:
		return false, nil
	}
	return tx.IsRecent(row, knownDevices)
}
