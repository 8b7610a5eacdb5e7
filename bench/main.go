// Command bench measures the speed of Watchword. Each figure is printed with its limit
// and, if the limit depends on another library (a peer), with the peer's figure from
// the same run.
//
//	go run .                   twenty minutes
//	go run . -quick            under a minute, with more noise and without PostgreSQL
//	go run . -only postgres    the parts whose names match, with -quick too
//
// A figure is a line "name value unit (limit …)", or "(reported)" if it has no limit.
// MISSED follows a figure that breaks its limit; then the exit status is 1. Status 2
// means that something could not be measured.
//
// The programs on this machine start PostgreSQL, on the disk and with PostgreSQL's
// default settings of durability.
//
// Sides that are compared take turns of a fraction of a second, in both orders. The
// reported ratio is the median of the ratios within each turn, so that other work of
// the machine slows both sides.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"time"
)

// cores is the number of cores for which the limits are set.
const cores = 2

var parts = []struct {
	name string
	run  func(*bench) error
	slow bool // left out by -quick, unless -only names it
}{
	{"interceptor", interceptors, false}, {"telemetry", telemetry, true}, {"echo", echo, false}, {"verify-rpc", verifyRPC, false}, {"delegation", delegations, false},
	{"revocation", revocation, false},
	{"memory", memory, false}, {"wire", wire, false}, {"start", starts, true}, {"flood", flood, true}, {"login", logins, true}, {"guesses", guesses, true}, {"strangers", strangers, true},
	{"replicas", replicas, true}, {"sqlite-refresh", sqliteRefresh, true}, {"postgres-refresh", postgresRefresh, true}, {"postgres-login", postgresLogin, true},
	{"postgres-trips", postgresTrips, true}, {"postgres-pool", postgresPool, true}, {"postgres-growth", postgresGrowth, true},
}

func main() {
	b := &bench{}
	flag.BoolVar(&b.quick, "quick", false, "take under a minute, without PostgreSQL unless -only asks for it")
	only := flag.String("only", "", "measure the parts whose names match this regular expression")
	flag.StringVar(&b.profiles, "profiles", "", "write profiles of the server into this folder, in the parts sqlite-refresh, postgres-refresh and login")
	flag.Parse()
	chosen, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: -only:", err)
		os.Exit(2)
	}
	runtime.GOMAXPROCS(min(cores, runtime.NumCPU()))
	for _, part := range parts {
		if !chosen.MatchString(part.name) || b.quick && part.slow && *only == "" {
			continue
		}
		if err := part.run(b); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", part.name+":", err)
			os.Exit(2)
		}
	}
	if b.missed > 0 {
		os.Exit(1)
	}
}

// bench is one run of the benchmarks.
type bench struct {
	quick    bool
	profiles string // the folder for profiles of the server; empty: none
	missed   int
}

// of returns a number of turns, tokens or rounds: the first one in a quick run.
func (b *bench) of(quick, full int) int {
	if b.quick {
		return quick
	}
	return full
}

// limit is the bound of a figure. The zero value means no bound.
type limit struct {
	relation string
	bound    float64
}

func atLeast(bound float64) limit { return limit{">=", bound} }
func atMost(bound float64) limit  { return limit{"<=", bound} }
func under(bound float64) limit   { return limit{"<", bound} }

// keeps reports whether a figure keeps its limit; a figure that is not a number does
// not.
func (l limit) keeps(v float64) bool {
	switch l.relation {
	case ">=":
		return v >= l.bound
	case "<=":
		return v <= l.bound
	case "<":
		return v < l.bound
	}
	return true
}

// report prints a figure.
func (b *bench) report(name string, value float64, unit string, l limit) {
	beside := "(reported)"
	if l.relation != "" {
		beside = fmt.Sprintf("(limit %s %s)", l.relation, number(l.bound))
	}
	if !l.keeps(value) {
		b.missed++
		beside += " MISSED"
	}
	fmt.Println(name, number(value), unit, beside)
}

// number formats a number with four significant digits.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
