// Package telemetry turns the numbers of the server's packages into the page /metrics, which
// Prometheus scrapes. The other packages, such as store and session, count plain numbers, and
// do not import telemetry: each scrape reads their Stats. The tables in series.go list every
// series with its text. docs/monitoring.md says what a series means and when to raise an alarm.
// A test compares docs/monitoring.md with the tables.
//
// A label has values from a set that the program bounds: never a username, an address or any
// other text of a client. The label issuer has the names that the admins gave to the trusted
// issuers; package federation bounds the number of trusted issuers.
package telemetry

import (
	"crypto/x509"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
)

// Parts holds the parts of a server of which /metrics shows the numbers. Every field is
// required.
type Parts struct {
	Calls     *Calls
	Store     *store.Store
	Passwords *password.Pool
	Logins    *login.Service
	Audit     *audit.Log
	Feed      *feed.Feed
	Keys      *issuer.KeySet
	Trusted   *federation.Keys
	Verifier  *authn.Verifier

	KeyTTL  time.Duration // --key-ttl; zero: only an operator rotates keys
	Ready   func() bool
	CanSign func() bool
	// Certificate returns the certificate that the server shows to new clients; nil without TLS.
	Certificate func() *x509.Certificate
	Unusable    func() map[string]bool        // whether the content of the files behind some flags cannot be used, by the flags
	Bounds      func() map[string]share.Stats // the numbers of each bound, by the name of the bound; the bounds of Passwords and Feed are left out
	Failures    func() map[string]uint64      // the number of failed runs of each maintenance task, by the name of the task
}

// Handler returns the handler of /metrics: the series of the parts, and the series about the
// process that Prometheus' own collector has. Of the series about Go's runtime, Handler keeps
// only go_goroutines, which shows a leak: process_resident_memory_bytes shows what the operating
// system sees of the heap.
func Handler(p Parts) http.Handler {
	registry := prometheus.NewRegistry() // one registry for each server, so that tests can run several servers in a process
	goroutines := prometheus.GaugeOpts{Name: "go_goroutines", Help: "Number of goroutines that currently exist."}
	registry.MustRegister(newPage(&p), prometheus.NewGaugeFunc(goroutines, func() float64 { return float64(runtime.NumGoroutine()) }),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// numbers holds everything that one scrape reads, so that a scrape calls the Stats of each
// package once.
type numbers struct {
	*Parts
	now       time.Time
	store     store.Stats
	passwords password.Stats
	throttled login.Throttled
	audit     audit.Stats
	feed      feed.Stats
	hub       hub.Stats
	keys      issuer.Stats
	trusted   federation.Stats
	verifier  authn.Status
	bounds    map[string]share.Stats
}

func (p *Parts) read() *numbers {
	n := &numbers{
		Parts: p, now: time.Now(), store: p.Store.Stats(), passwords: p.Passwords.Stats(), throttled: p.Logins.Throttled(), audit: p.Audit.Stats(),
		feed: p.Feed.Stats(), hub: p.Feed.Hub().Stats(), verifier: p.Verifier.Status(), bounds: p.Bounds(),
		trusted: p.Trusted.Stats(),
	}
	n.keys = p.Keys.Stats(n.now)
	n.bounds["watchers"] = n.hub.Watchers
	n.bounds["password_queue"], n.bounds["password_queue_of_admins"] = n.passwords.Queue, n.passwords.Reserve
	return n
}

// page is the collector (of Prometheus' library) for all series of the server.
type page struct {
	parts      *Parts
	series     []*prometheus.Desc // the descriptions of the table series
	histograms []*prometheus.Desc // the descriptions of the table histograms
}

func newPage(p *Parts) *page {
	c := &page{parts: p}
	for _, s := range series {
		c.series = append(c.series, prometheus.NewDesc("watchword_"+s.name, s.text, s.labels, nil))
	}
	for _, h := range histograms {
		c.histograms = append(c.histograms, prometheus.NewDesc("watchword_"+h.name, h.text, h.labels, nil))
	}
	return c
}

// Describe implements [prometheus.Collector].
func (c *page) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range append(c.series, c.histograms...) {
		to <- desc
	}
}

// Collect implements [prometheus.Collector]. Collect reads numbers in memory, and uses no
// database and no network.
func (c *page) Collect(to chan<- prometheus.Metric) {
	n := c.parts.read()
	for i, s := range series {
		s.values(n, func(value float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(c.series[i], s.kind, value, labels...)
		})
	}
	for i, h := range histograms {
		h.values(n, func(d count.Histogram, labels ...string) {
			to <- prometheus.MustNewConstHistogram(c.histograms[i], d.Count, d.Seconds, d.Buckets, labels...)
		})
	}
}
