package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/roster"
	"github.com/watchword-auth/watchword/internal/store"
)

// These constants bound what a watcher (the verifier of a service) says of itself: for each
// stream of ReportWatcher the server keeps one identity and one report in memory.
const (
	maxWatcherID     = 32  // the longest id of a watcher, in bytes
	maxWords         = 128 // the longest text, such as the name of the service, in bytes
	maxResume        = 512 // bytes; a resume token of this server has 62 bytes
	maxReasons       = 64
	maxStaleness     = 366 * 24 * time.Hour
	maxNameLength    = 256 // the longest name of a certificate that ListWatchers shows, in bytes
	reportsPerSecond = 20
	// reportsPerStream is less than the number of small frames that package gate admits on one
	// stream: so a stream with many reports ends with an answer, and not with a reset.
	reportsPerStream  = 800
	reportsRefusalFor = time.Second
)

// errManyReports ends a stream with more reports than reportsPerSecond.
var errManyReports = refusal.Status(codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "",
	fmt.Sprintf("more than %d reports a second", reportsPerSecond),
	details(watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, func() time.Duration { return reportsRefusalFor })...).Err()

// Watchers serves TrustService/ListWatchers alone.
type Watchers struct {
	watchwordv1.UnimplementedTrustServiceServer
	Roster *roster.Roster
}

// ReportWatcher serves TrustService/ReportWatcher: a watcher (the verifier of a service) sends
// what ListWatchers shows about the watcher. Package gate bounds the number of streams.
func (t *Trust) ReportWatcher(stream grpc.ClientStreamingServer[watchwordv1.ReportWatcherRequest, watchwordv1.ReportWatcherResponse]) error {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return stream.SendAndClose(&watchwordv1.ReportWatcherResponse{})
	}
	if err != nil {
		return err
	}
	from, _, err := t.clientOf(stream.Context(), first.GetIdentity().GetWatcher())
	if err != nil {
		return err
	}
	words, err := readIdentity(first)
	if err != nil {
		return err
	}
	reports := t.Roster.Reporting(from, words)
	defer reports.Close()
	pace := rate.NewLimiter(reportsPerSecond, reportsPerSecond)
	for range reportsPerStream {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if !pace.Allow() {
			return errManyReports
		}
		report, err := t.readReport(msg)
		if err != nil {
			return err
		}
		reports.Add(report)
	}
	return stream.SendAndClose(&watchwordv1.ReportWatcherResponse{})
}

// readIdentity reads the first message of a stream of reports, in which a watcher describes
// itself.
func readIdentity(msg *watchwordv1.ReportWatcherRequest) (roster.Words, error) {
	said := msg.GetIdentity()
	var r reading
	field(&r, "identity", watcherID, said)
	words := roster.Words{
		Service:  field(&r, "identity.service", shortWords, said.GetService()),
		Instance: field(&r, "identity.instance", shortWords, said.GetInstance()),
		Version:  field(&r, "identity.version", shortWords, said.GetVersion()),
	}
	return words, r.err
}

// watcherID checks the id of a watcher (the verifier of a service) that reports.
func watcherID(said *watchwordv1.WatcherIdentity) ([]byte, error) {
	switch id := said.GetWatcher(); {
	case said == nil:
		return nil, errors.New("is required in the first message")
	case len(id) == 0 || len(id) > maxWatcherID:
		return nil, fmt.Errorf("the id of the watcher has %d bytes, want 1 to %d", len(id), maxWatcherID)
	default:
		return id, nil
	}
}

// shortWords checks a text in which a watcher describes itself, such as the name of its
// service.
func shortWords(text string) (string, error) {
	if len(text) > maxWords {
		return "", fmt.Errorf("longer than %d bytes", maxWords)
	}
	if !store.IsText(text) {
		return "", errNotText
	}
	return text, nil
}

// readReport reads the second message or a later message of a stream of reports.
func (t *Trust) readReport(msg *watchwordv1.ReportWatcherRequest) (roster.Report, error) {
	said := msg.GetReport()
	var broken error
	switch {
	case said == nil:
		broken = invalidField{"report", errors.New("is required in every message after the first")}
	case len(said.GetResume()) > maxResume:
		broken = invalidField{"report.resume", fmt.Errorf("longer than %d bytes", maxResume)}
	case len(said.GetRefusals()) > maxReasons:
		broken = invalidField{"report.refusals", fmt.Errorf("more than %d reasons", maxReasons)}
	}
	if broken != nil {
		return roster.Report{}, broken
	}
	report := roster.Report{
		Position:  t.Hub.Reached(said.GetResume()),
		Staleness: min(max(0, said.GetStaleness().AsDuration()), maxStaleness),
	}
	if len(said.GetRefusals()) > 0 {
		report.Refusals = map[int32]uint64{}
		for _, refused := range said.GetRefusals() {
			report.Refusals[int32(refused.GetReason())] = refused.GetCount()
		}
	}
	return report, nil
}

// ListWatchers serves TrustService/ListWatchers.
func (s *Watchers) ListWatchers(ctx context.Context, req *watchwordv1.ListWatchersRequest) (*watchwordv1.ListWatchersResponse, error) {
	var r reading
	p := readPage(&r, req, "watchers")
	if r.err != nil {
		return nil, r.err
	}
	list, err := s.Roster.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &watchwordv1.ListWatchersResponse{
		Replicas: messages(list.Replicas, replicaMessage), Absent: messages(list.Absent, absentMessage), Position: list.Position,
	}
	begin, found := slices.BinarySearchFunc(list.Watchers, p.after, func(w *roster.Watcher, id string) int { return strings.Compare(w.ID, id) })
	if found {
		begin++
	}
	rest := list.Watchers[begin:]
	if len(rest) > p.size {
		rest = rest[:p.size]
		resp.NextPageToken = p.token(rest[p.size-1].ID)
	}
	resp.Watchers = messages(rest, watcherMessage)
	return resp, nil
}

func replicaMessage(r *roster.Replica) *watchwordv1.Replica {
	return &watchwordv1.Replica{
		Id: r.ID, Address: r.Address, Answers: r.Answers, Position: r.Position, NeedsCertificate: r.NeedsCertificate, SeenAt: timestamp(r.SeenAt),
	}
}

func absentMessage(c *store.WatcherCertificate) *watchwordv1.AbsentCertificate {
	return &watchwordv1.AbsentCertificate{Certificate: string(c.Name), SeenAt: timestamp(c.SeenAt)}
}

func watcherMessage(w *roster.Watcher) *watchwordv1.Watcher {
	m := &watchwordv1.Watcher{
		Address: w.Address, Certificate: w.Certificate, Replica: w.Replica, Since: timestamp(w.Since), Reports: w.Reports,
	}
	if !w.Reports {
		return m
	}
	m.Service, m.Instance, m.Version = w.Service, w.Instance, w.Version
	m.Position, m.Lag, m.Staleness = w.Position, w.Lag, durationpb.New(w.Staleness)
	for reason, n := range w.Refusals {
		m.Refusals = append(m.Refusals, &watchwordv1.RefusalCount{Reason: watchwordv1.ErrorReason(reason), Count: n})
	}
	slices.SortFunc(m.Refusals, func(a, b *watchwordv1.RefusalCount) int { return int(a.GetReason()) - int(b.GetReason()) })
	return m
}

// shownName returns the name in a certificate as ListWatchers shows the name: like
// [certificateName], but a subject has the form of RFC 2253. A long name is cut, and ends in a
// part of its hash.
func shownName(cert *x509.Certificate) string {
	name := certificateName(cert)
	if len(cert.URIs) == 0 && len(cert.DNSNames) == 0 {
		name = "subject " + cert.Subject.String()
	}
	name = strings.ToValidUTF8(strings.ReplaceAll(name, "\x00", "\uFFFD"), "\uFFFD")
	if len(name) <= maxNameLength {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return strings.ToValidUTF8(name[:maxNameLength-20], "") + fmt.Sprintf(" %x", sum[:8])
}
