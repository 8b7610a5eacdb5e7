package audit

import (
	"fmt"
	"strings"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// OfBinding returns the event of a new or removed binding. The user concerned is the service
// account.
func OfBinding(what Type, by caller.Caller, b *store.Binding, username string) Event {
	detail := "issuer: " + b.Issuer + ", subject: " + b.Subject
	for _, claim := range b.Claims {
		detail += fmt.Sprintf(", claim %s: %v", strings.Join(claim.Path, " "), claim.Value)
	}
	return Event{Type: what, ActorID: by.ID, ActorName: by.Name, UserID: b.UserID, UserName: username, Detail: detail}
}
