package telemetry

import (
	"runtime"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/version"
)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// add adds one value to a series of /metrics, with the values of the labels.
type add = func(value float64, labels ...string)

// series lists the series that have one value for each set of labels. The function values of a
// series calls add for each value.
var series = []struct {
	kind       prometheus.ValueType
	name, text string // name is the name of the series without "watchword_"
	labels     []string
	values     func(*numbers, add)
}{
	// These series tell about the server.
	{gauge, "build_info", "Always 1. The labels have the version of the program and of Go.", []string{"version", "go_version"},
		func(_ *numbers, add add) { add(1, version.String(), runtime.Version()) }},
	{gauge, "ready", "1 if the server is ready, as /readyz says.", nil, func(n *numbers, add add) { add(truth(n.Ready())) }},
	{gauge, "certificate_expiry_timestamp_seconds", "When the certificate of the server expires, in seconds since 1970. Missing without TLS.", nil,
		func(n *numbers, add add) {
			if certificate := n.Certificate(); certificate != nil {
				add(float64(certificate.NotAfter.Unix()))
			}
		}},
	{gauge, "files_unusable", "1 if the content of the files of TLS cannot be used, and what was read before is in use. Missing without TLS.", []string{"what"},
		func(n *numbers, add add) {
			for what, unusable := range n.Unusable() {
				add(truth(unusable), what)
			}
		}},
	{counter, "maintenance_failures_total", "Failures of tasks that the server repeats by itself, such as deleting old rows.", []string{"task"},
		func(n *numbers, add add) { addAll(n.Failures(), add) }},

	// These series tell about calls, and about the bounds on connections and requests.
	{counter, "calls_total", "Calls that have ended, by outcome: OK, the reason of the refusal, or the gRPC code of an error without a reason.",
		[]string{"service", "method", "outcome"}, callsTotal},
	{gauge, "places_taken", "Places taken now within each bound: connections, unfinished requests, streams, reports of watchers, watchers, waiting logins.", []string{"bound"},
		places(func(s share.Stats) float64 { return float64(s.Held) })},
	{gauge, "places_limit", "Places within each bound.", []string{"bound"},
		places(func(s share.Stats) float64 { return float64(s.Places) })},
	{counter, "places_refused_total", "Clients that got no place within a bound.", []string{"bound"},
		places(func(s share.Stats) float64 { return float64(s.Refused) })},
	{counter, "places_evicted_total", "Places within a bound that were taken away for another client.", []string{"bound"},
		places(func(s share.Stats) float64 { return float64(s.Evicted) })},

	// These series tell about passwords and the security record.
	{gauge, "password_hashes_running", "Password hashes that run now.", nil, func(n *numbers, add add) { add(float64(n.passwords.Running)) }},
	{gauge, "password_hashes_limit", "Password hashes that may run at a time.", nil, func(n *numbers, add add) { add(float64(n.passwords.Parallel)) }},
	{counter, "password_overloads_total", "Passwords that were not compared, because the queue was full or the deadline of the call too near.", nil,
		func(n *numbers, add add) { add(float64(n.passwords.Refused)) }},
	{counter, "throttled_tries_total", "Logins and changes of passwords refused after too many wrong passwords, by the bound that refused: username, device, network; or full, if no time to promise was left.",
		[]string{"by"}, func(n *numbers, add add) {
			add(float64(n.throttled.Names), "username")
			add(float64(n.throttled.Devices), "device")
			add(float64(n.throttled.Sources), "network")
			add(float64(n.throttled.Full), "full")
		}},
	{counter, "audit_events_total", "Events in the security record by type, such as login, logout, refresh.reused and refresh.repeated. Refused calls are in watchword_calls_total.",
		[]string{"type"}, func(n *numbers, add add) { addAll(n.audit.Recorded, add) }},
	{gauge, "audit_unwritten_calls", "Refused calls that are not in the database's security record yet.", nil,
		func(n *numbers, add add) { add(float64(n.audit.Unwritten)) }},
	{counter, "audit_merged_records_total", "Kinds of refused calls that lost a record of their own, because there were too many kinds. The calls count in coarser records.", nil,
		func(n *numbers, add add) { add(float64(n.audit.Merged)) }},
	{counter, "audit_write_failures_total", "Failed attempts to write the counts of refused calls into the security record.", nil,
		func(n *numbers, add add) { add(float64(n.audit.FailedFlushes)) }},

	// These series tell about signing keys.
	{gauge, "can_sign", "1 if the server can make access tokens that its own verifier accepts.", nil, func(n *numbers, add add) { add(truth(n.CanSign())) }},
	{gauge, "keys", "Signing keys in the key set, by state: next, signing, retired, revoked.", []string{"state"},
		func(n *numbers, add add) { addAll(n.keys.Keys, add) }},
	{gauge, "key_age_seconds", "The longest time that a key has been in a state. Missing for a state without a key.", []string{"state"},
		func(n *numbers, add add) {
			for state, age := range n.keys.Ages {
				add(age.Seconds(), string(state))
			}
		}},
	{gauge, "key_rotation_due_seconds", "Time until the server rotates the signing key. Negative if the rotation is late. Missing with --key-ttl 0.", nil,
		func(n *numbers, add add) {
			if age, signs := n.keys.Ages[issuer.Signing]; signs && n.KeyTTL > 0 {
				add((n.KeyTTL - age).Seconds())
			}
		}},
	{counter, "key_problems_total", "Readings of the key set that could not be used as it was. The log has an ERROR with what to do.", nil,
		func(n *numbers, add add) { add(float64(n.keys.Problems)) }},

	// These series tell about trusted issuers of assertions.
	{counter, "issuer_fetches_total", "Fetches of the keys of trusted issuers, by outcome: ok, failed.", []string{"outcome"},
		func(n *numbers, add add) {
			add(float64(n.trusted.Succeeded), "ok")
			add(float64(n.trusted.Failed), "failed")
		}},
	{gauge, "issuers_failing", "Trusted issuers of which the newest fetch of the keys failed.", nil, func(n *numbers, add add) { add(float64(n.trusted.Failing)) }},
	{gauge, "issuer_keys_age_seconds", "Age of the oldest keys of a trusted issuer that were fetched. 0 if none were.", nil,
		func(n *numbers, add add) { add(n.trusted.Oldest.Seconds()) }},

	// These series tell about the database, the feed of events, and watchers (verifiers with a
	// stream).
	{gauge, "database_up", "1 if the database answers.", nil, func(n *numbers, add add) { add(truth(!n.store.Away)) }},
	{counter, "database_outages_total", "How often the database went away.", nil, func(n *numbers, add add) { add(float64(n.store.Outages)) }},
	{counter, "database_failed_calls_total", "Reads and writes that failed because the database was away.", nil,
		func(n *numbers, add add) { add(float64(n.store.FailedCalls)) }},
	{gauge, "database_connections", "Connections to the database by state: in_use, idle, and withheld for a connection that PostgreSQL has refused.", []string{"state"},
		func(n *numbers, add add) {
			add(float64(n.store.Connections.InUse), "in_use")
			add(float64(n.store.Connections.Idle), "idle")
			add(float64(n.store.Connections.Withheld), "withheld")
		}},
	{gauge, "database_connections_limit", "Connections to the database that the server may have.", nil,
		func(n *numbers, add add) { add(float64(n.store.Connections.Most)) }},
	{counter, "database_forks_total", "How often the database had lost events: a backup was restored, or a standby was promoted that lacked commits.", nil,
		func(n *numbers, add add) { add(float64(n.feed.Forks)) }},
	{gauge, "database_clock_offset_seconds", "By how much the database's clock is ahead of this machine's clock.", nil,
		func(n *numbers, add add) { add(n.hub.ClockOffset.Seconds()) }},
	{counter, "database_clock_set_total", "How often the database's clock was set.", nil, func(n *numbers, add add) { add(float64(n.feed.ClockSet)) }},
	{gauge, "feed_position", "Number of the newest event that verifiers can have from this server.", nil,
		func(n *numbers, add add) { add(float64(n.hub.Position)) }},
	{gauge, "feed_age_seconds", "Time since the server last read all events from the database. Verifiers know every change made before.", nil,
		func(n *numbers, add add) { add(n.hub.Age.Seconds()) }},
	{counter, "feed_failures_total", "Failures of the feed of events, by what failed: reading the events, or counting the time that passes.", []string{"what"},
		func(n *numbers, add add) {
			add(float64(n.feed.FailedReadings), "events")
			add(float64(n.feed.FailedTicks), "time")
		}},
	{counter, "watchers_dropped_total", "Watchers that had to open another stream, by cause: behind, slow (left a message unread), outdated (knew more than this server).",
		[]string{"cause"}, func(n *numbers, add add) {
			add(float64(n.hub.Behind), "behind")
			add(float64(n.hub.Slow), "slow")
			add(float64(n.hub.Outdated), "outdated")
		}},

	// These series tell about the server's own verifier. The name of each series is the name of
	// an instrument of package authn, as OpenTelemetry spells the name for Prometheus.
	{gauge, "verifier_stale", "1 if the trust bundle of the server's own verifier is stale.", nil, func(n *numbers, add add) { add(truth(n.verifier.Stale)) }},
	{gauge, "verifier_bundle_age_seconds", "Age of the trust bundle of the server's own verifier.", nil,
		func(n *numbers, add add) { add(n.verifier.Staleness.Seconds()) }},
	{counter, "verifier_tokens_accepted_total", "Access tokens that the server's own verifier accepted, found in the cache or after a check of the signature.", []string{"by"},
		func(n *numbers, add add) {
			add(float64(n.verifier.AcceptedCached), "cache")
			add(float64(n.verifier.AcceptedChecked), "check")
		}},
	{counter, "verifier_tokens_refused_total", "Access tokens that the server's own verifier refused, and calls without a token, by reason.", []string{"reason"},
		func(n *numbers, add add) {
			for reason, refused := range n.verifier.Refused {
				add(float64(refused), refusal.Name(reason))
			}
		}},
	{gauge, "verifier_revocations", "Revocations in force: of sessions that ended, and of users that were disabled or got other rights.", []string{"of"},
		func(n *numbers, add add) {
			add(float64(n.verifier.EndedSessions), "session")
			add(float64(n.verifier.RaisedUsers), "user")
		}},
}

// histograms lists the series of /metrics that count durations in buckets.
var histograms = []struct {
	name, text string
	labels     []string
	values     func(*numbers, func(d count.Histogram, labels ...string))
}{
	{"call_duration_seconds", "Time of the calls of AuthService, by method.", []string{"method"},
		func(n *numbers, add func(count.Histogram, ...string)) {
			for _, m := range n.Calls.methods {
				if m.took != nil {
					add(m.took.Read(), m.name)
				}
			}
		}},
	{"password_wait_seconds", "Time that a login waits in the queue for its password hash.", nil,
		func(n *numbers, add func(count.Histogram, ...string)) { add(n.passwords.Waits) }},
	{"password_hash_seconds", "Time of a password hash.", nil,
		func(n *numbers, add func(count.Histogram, ...string)) { add(n.passwords.Hashes) }},
	{"database_call_duration_seconds", "Time of reads, writes and refreshes in the database, with all waiting.", []string{"call"},
		func(n *numbers, add func(count.Histogram, ...string)) {
			add(n.store.Reads, "read")
			add(n.store.Writes, "write")
			add(n.store.Spends, "refresh")
		}},
	{"watcher_delay_seconds", "Time until a watcher takes a message, such as a revocation, from this server.", nil,
		func(n *numbers, add func(count.Histogram, ...string)) { add(n.hub.Delays) }},
}

// callsTotal adds the numbers of ended calls to the series calls_total. For every method, the
// page has the outcomes OK and INTERNAL from the start, with the value 0.
func callsTotal(n *numbers, add add) {
	for _, m := range n.Calls.methods {
		add(float64(m.ok.Load()), m.service, m.name, "OK")
		m.failed.Range(func(outcome, failed any) bool {
			add(float64(failed.(*atomic.Uint64).Load()), m.service, m.name, outcome.(string))
			return true
		})
	}
}

// places returns a function that adds one number of every bound on connections and requests.
func places(number func(share.Stats) float64) func(*numbers, add) {
	return func(n *numbers, add add) {
		for bound, s := range n.bounds {
			add(number(s), bound)
		}
	}
}

func addAll[K ~string, N uint64 | int](values map[K]N, add add) {
	for label, value := range values {
		add(float64(value), string(label))
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
