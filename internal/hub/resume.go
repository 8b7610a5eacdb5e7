package hub

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// A resume token, the field resume of WatchBundle, tells which events a watcher knows. A resume
// token has the form
//
//	event number ‖ tag ‖ greatest version ‖ MAC ‖ origin
//
// with 8, 8, 8 and 16 bytes; the origin has the remaining bytes. The greatest version is
// [Update].Greatest of the hub that made the resume token: at that time, no user's rights had a
// greater version number. From the resume token a server on a restored database learns which
// version numbers the database has lost. The
// MAC is HMAC-SHA256 over everything else, truncated to 128 bits (RFC 2104, section 5): without
// the MAC, any client could raise the version number of all new access tokens at will.
const (
	resumeMAC    = 16
	resumeLength = 8 + len(Tag{}) + 8 + resumeMAC // bytes of a resume token without the origin
)

// SealResume sets the key for the MAC of resume tokens. All hubs of an installation need the
// same key: otherwise each hub sends a whole snapshot to a watcher that comes from another hub.
// Call SealResume before Watch and Conn are used. Without SealResume, the key is random.
func (h *Hub) SealResume(key []byte) { h.resumeKey = key }

// resumeLocked returns the resume token for a watcher that knows everything that the hub has
// published. h.mu must be held.
func (h *Hub) resumeLocked() []byte {
	token := binary.BigEndian.AppendUint64(nil, uint64(h.ring.at.Seq))
	token = append(token, h.ring.at.Tag[:]...)
	token = binary.BigEndian.AppendUint64(token, uint64(h.greatest))
	return append(append(token, h.resumeSum(token)...), h.origin...)
}

// resumeSum returns the MAC of a resume token with the origin of h.
func (h *Hub) resumeSum(body []byte) []byte {
	sum := hmac.New(sha256.New, h.resumeKey)
	sum.Write(body)
	sum.Write([]byte(h.origin))
	return sum.Sum(nil)[:resumeMAC]
}

// parseResume returns the position and the greatest version in a resume token. If the token is
// malformed, comes from another database (origin), or has a wrong MAC, parseResume returns
// nowhere and zero.
func (h *Hub) parseResume(token []byte) (at Position, greatest int64) {
	if len(token) < resumeLength || string(token[resumeLength:]) != h.origin {
		return nowhere, 0
	}
	body, mac := token[:resumeLength-resumeMAC], token[resumeLength-resumeMAC:resumeLength]
	if !hmac.Equal(mac, h.resumeSum(body)) {
		return nowhere, 0
	}
	return Position{int64(binary.BigEndian.Uint64(body)), Tag(body[8:16])}, int64(binary.BigEndian.Uint64(body[16:]))
}

// Reached returns the number of the newest event that a watcher with a resume token knows; 0 if
// the token is malformed, or is known to be of another history of events.
func (h *Hub) Reached(token []byte) int64 {
	at, _ := h.parseResume(token)
	h.mu.Lock()
	defer h.mu.Unlock()
	if i, found := h.ring.find(at.Seq); at == nowhere || found && h.ring.recent[i] != at {
		return 0
	}
	return at.Seq
}

// Claimed returns the greatest version of a user's rights in the resume tokens of all watchers
// so far. If Claimed returns more than [Update].Greatest of the newest update, the database has
// lost changes of rights, or the publisher has not read the newest changes yet.
func (h *Hub) Claimed() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.claimed
}

// claim remembers the greatest version in a watcher's resume token, and reports whether this
// version is above every version that the hub knows, so that the hub must first read newer
// events from the database.
func (h *Hub) claim(greatest int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.claimed = max(h.claimed, greatest)
	return greatest > h.greatest
}
