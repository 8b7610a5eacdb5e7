package roster

import (
	"encoding/json"
	"time"
)

// summary holds the JSON in a replica's row of the table replicas, which tells the other replicas
// the watchers of the replica. A program ignores the fields that it does not know, and a
// missing field is zero. An age in a summary is the age at the time of the write, so no replica
// needs the clock of another replica.
type summary struct {
	Position         int64        `json:"position"`
	NeedsCertificate bool         `json:"needs_certificate,omitempty"`
	Streams          []streamLine `json:"streams,omitempty"`
	Reports          []reportLine `json:"reports,omitempty"`
}

// streamLine describes one verifier's stream of the trust bundle, in a [summary].
type streamLine struct {
	Number      uint64        `json:"number"` // the number that the replica has given the stream
	Watcher     []byte        `json:"watcher,omitempty"`
	Address     string        `json:"address"`
	Certificate string        `json:"certificate,omitempty"`
	Age         time.Duration `json:"age"`
}

// reportLine describes the newest report of a watcher (a verifier with a stream of
// WatchBundle), in the summary that a replica writes for the other replicas.
type reportLine struct {
	Watcher     []byte        `json:"watcher"`
	Certificate string        `json:"certificate,omitempty"`
	Words       Words         `json:"words"`
	Report      Report        `json:"report"`
	Age         time.Duration `json:"age"`
}

func (r *reportLine) identity() identity { return identity{string(r.Watcher), r.Certificate} }

func (s *summary) encode() ([]byte, error) { return json.Marshal(s) }

// decode reads the summary of another replica. Errors: an error if the summary is no JSON of this
// form.
func decode(encoded []byte) (*summary, error) {
	s := new(summary)
	return s, json.Unmarshal(encoded, s)
}
