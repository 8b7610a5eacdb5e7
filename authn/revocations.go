package authn

import (
	"sync"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// pruneEvery is the time between two deletions of expired entries. A deletion once a minute
// costs little, and is often enough, since an entry lives for minutes at least.
const pruneEvery = time.Minute

// revocations holds the ended sessions and the raised versions of users.
//
// mu guards the maps. Only the goroutine of the feed writes, so this goroutine reads without
// mu. Other goroutines only call [revocations.of], [revocations.sizes], and [idMap.all] of the
// maps. No method holds mu for longer than one batch of entries, so the check of a token waits
// for some tens of microseconds at most, whatever a server sends.
//
// A message only adds entries, and an entry never becomes weaker: a server restored from a
// backup may have forgotten a revocation, and the verifier must still refuse the revoked token.
// An entry is deleted when the last token concerned has expired by every clock that the
// verifier has heard lately: a clock that was ahead for a moment deletes nothing.
type revocations struct {
	mu     sync.RWMutex
	ended  idMap[int64] // when the entry may be deleted, by the server's time, in Unix seconds; the key is the id of the ended session
	raised idMap[raised]

	nextPrune time.Time // by this machine's monotonic clock; only the goroutine that writes uses nextPrune
}

// raised holds two versions of a user's rights. A token with a lower version (claim ver) is
// refused: below revokedBelow as TOKEN_REVOKED, below staleBelow as TOKEN_STALE.
type raised struct {
	revokedBelow int64
	staleBelow   int64
	keep         int64 // when the entry may be deleted, by the server's time, in Unix seconds
}

// news has the fields that a chunk of a snapshot and a change have in common.
type news interface {
	GetTrustState() *watchwordv1.TrustState
	GetEndedSessions() []*watchwordv1.EndedSession
	GetRaisedVersions() []*watchwordv1.RaisedVersion
}

// add stores the revocations of a message. now is the token time. A concurrent [bundle.judge]
// may see a part of the message. Since add only adds entries, judge refuses a token only for a
// revocation that the message contains.
func (r *revocations) add(n news, t *trust, now time.Time) {
	inBatches(&r.mu, n.GetEndedSessions(), func(s *watchwordv1.EndedSession) {
		keep, _ := r.ended.get(s.GetSessionId())
		r.ended.set(s.GetSessionId(), max(keep, t.keepUntil(s.GetUntil(), now)))
	})
	inBatches(&r.mu, n.GetRaisedVersions(), func(v *watchwordv1.RaisedVersion) {
		user, _ := r.raised.get(v.GetUserId())
		if v.GetRevoked() {
			user.revokedBelow = max(user.revokedBelow, v.GetVersion())
		} else {
			user.staleBelow = max(user.staleBelow, v.GetVersion())
		}
		user.keep = max(user.keep, t.keepUntil(v.GetUntil(), now))
		r.raised.set(v.GetUserId(), user)
	})
}

// of returns, as of one moment, the reason for which a revocation refuses a token: a revocation
// of the session, of the subject or of any actor. If no revocation concerns the token, of
// returns accepted. If both reasons apply, of returns TOKEN_REVOKED and not TOKEN_STALE.
func (r *revocations) of(c *token.Claims) watchwordv1.ErrorReason {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c.SessionID != "" { // a service account has no session
		if _, ended := r.ended.get(c.SessionID); ended {
			return tokenRevoked
		}
	}
	reason := r.ofUserRLocked(c.Subject, c.Version)
	for i := range c.Actors {
		if reason == tokenRevoked {
			break
		}
		if of := r.ofUserRLocked(c.Actors[i].Subject, c.Actors[i].Version); of != accepted {
			reason = of
		}
	}
	return reason
}

// ofUserRLocked returns the reason for which a raised version of the user makes verifiers
// refuse a token with the given version, or accepted. r.mu must be held for reading.
func (r *revocations) ofUserRLocked(id string, version int64) watchwordv1.ErrorReason {
	user, _ := r.raised.get(id)
	switch {
	case version < user.revokedBelow:
		return tokenRevoked
	case version < user.staleBelow:
		return tokenStale
	}
	return accepted
}

// sizes returns the number of ended sessions, and the number of users with a raised version.
func (r *revocations) sizes() (ended, raised int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.ended.len(), r.raised.len()
}

// prune deletes each entry for which every token concerned has expired. expired is the token
// time that [serverClock.expired] returns. If the last deletion is less than pruneEvery ago,
// prune does nothing.
func (r *revocations) prune(expired time.Time) {
	if time.Now().Before(r.nextPrune) {
		return
	}
	r.nextPrune = time.Now().Add(pruneEvery)
	r.ended.forget(&r.mu, func(keep int64) bool { return keep < expired.Unix() })
	r.raised.forget(&r.mu, func(u raised) bool { return u.keep < expired.Unix() })
}
