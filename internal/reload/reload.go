// Package reload keeps values that come from files, such as certificates, and reads the files
// again while the process runs.
//
// A [Set] reads the content of all its files once a second. Reading works for every way to
// replace a file: Kubernetes replaces a link to a folder, and a network drive sends no
// notification. The Set uses new content when two readings in a row have found the same
// content. Therefore a file that is half written changes nothing, and a new certificate changes
// nothing before its private key has arrived.
//
// If the new content cannot be used, the old value stays in use. The Set logs the fault once,
// and logs once more when the files are good again. Each value changes independently of the
// others: a broken certificate does not keep a new CA away. The content of a file stays out of
// the log and of every error.
package reload

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
)

const (
	// every is the time between two readings of the files. To read a few small files takes less
	// than a tenth of a millisecond.
	every = time.Second
	// maxFile bounds a file, in bytes. The CAs of an operating system have about 300 KB.
	maxFile = 4 << 20
	// longRead is the time after which a log line says that the reading of the files hangs.
	longRead = 10 * time.Second
)

// Set holds values that come from files, such as certificates, and reads the files again in
// [Set.Run]. Several goroutines can use a Set.
type Set struct {
	logger *slog.Logger

	looking sync.Mutex // held while the files are read

	mu     sync.Mutex // guards values
	values []looker
}

type looker interface {
	lookLocked(ctx context.Context, atOnce bool)
	Status() Status
}

// NewSet returns a Set without values. Add the values by [KeyPair] and [CAs] before [Set.Run].
func NewSet(logger *slog.Logger) *Set { return &Set{logger: logger} }

// Run reads the files of all values once a second, until ctx ends.
func (s *Set) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.look(ctx, false)
		}
	}
}

// Now reads every file of the set at once, and uses new content without a second reading. Now
// logs what it has read.
func (s *Set) Now(ctx context.Context) { s.look(ctx, true) }

// look reads the files of every value. A read can hang for as long as a network drive does not
// answer: if ctx ends first, look returns, and the read goes on until the drive answers.
func (s *Set) look(ctx context.Context, atOnce bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.looking.Lock()
		defer s.looking.Unlock()
		for _, v := range s.all() {
			v.lookLocked(ctx, atOnce)
		}
	}()
	hangs := time.AfterFunc(longRead, func() {
		s.logger.WarnContext(ctx, "reading the files hangs; what was read before stays in use until the read ends")
	})
	defer hangs.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// all returns the values of the set.
func (s *Set) all() []looker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.values)
}

// Status returns the state of every value of the set, for metrics. Status does not wait for a
// reading of files.
func (s *Set) Status() (all []Status) {
	for _, v := range s.all() {
		all = append(all, v.Status())
	}
	return all
}

// Status describes the state of one [Value].
type Status struct {
	Name     string
	Files    []string
	ReadAt   time.Time // when the value in use was read
	NotAfter time.Time // when the value in use expires; zero for a value that does not expire
	Fault    error     // why the present content of the files cannot be used; nil if the content is in use
}

// source says how to make a [Value] from files.
type source[T any] struct {
	name  string // begins the text of errors: for example, the flags that name the files
	files []string
	parse func(contents [][]byte) (value T, notAfter time.Time, err error)
}

// Value holds a value that comes from files, such as a certificate with its key.
type Value[T any] struct {
	source[T]
	logger  *slog.Logger
	current atomic.Pointer[T]
	status  atomic.Pointer[Status]

	// Set.looking guards the fields below.
	seen, used digest // the digests of the content at the last reading, and of the value in use
}

// digest is a hash of the content of a value's files, or of the error of reading the files, by
// which a [Value] notices a change.
type digest [sha256.Size]byte

// Get returns the value in use.
func (v *Value[T]) Get() T { return *v.current.Load() }

// Status returns the state of the value.
func (v *Value[T]) Status() Status { return *v.status.Load() }

// add reads a value for the first time, and adds the value to the set. Errors: errors of reading
// the files and of parse, each after the name of the value.
func add[T any](s *Set, from source[T]) (*Value[T], error) {
	v := &Value[T]{source: from, logger: s.logger}
	contents, sum, err := v.read()
	if err == nil {
		err = v.use(contents, sum)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.name, err)
	}
	v.seen = sum
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values = append(s.values, v)
	return v, nil
}

// read reads the files of the value. read returns the digest of the contents; after an error,
// the digest of the error's text.
func (v *Value[T]) read() (contents [][]byte, sum digest, err error) {
	hash := sha256.New()
	for _, path := range v.files {
		content, err := durable.Read(path, maxFile)
		if err != nil {
			return nil, sha256.Sum256([]byte("error: " + err.Error())), err
		}
		_ = binary.Write(hash, binary.BigEndian, int64(len(content))) // a hash never refuses a write
		_, _ = hash.Write(content)
		contents = append(contents, content)
	}
	return contents, digest(hash.Sum(nil)), nil
}

// use makes a value of the contents, which [Value.Get] returns from then on.
func (v *Value[T]) use(contents [][]byte, sum digest) error {
	value, notAfter, err := v.parse(contents)
	if err != nil {
		return err
	}
	v.used = sum
	v.current.Store(&value)
	v.status.Store(&Status{Name: v.name, Files: v.files, ReadAt: time.Now(), NotAfter: notAfter})
	return nil
}

// lookLocked reads the files of the value, and uses new content if the reading before has found
// the same content, or if atOnce is true. The two readings must agree, since another program may
// have written only half of a file at the first reading. Set.looking must be held.
func (v *Value[T]) lookLocked(ctx context.Context, atOnce bool) {
	contents, sum, err := v.read()
	settled := sum == v.seen || atOnce
	v.seen = sum
	fault := v.Status().Fault
	switch {
	case !settled:
	case err == nil && sum == v.used:
		if fault != nil {
			v.setFault(nil)
		}
		if fault != nil || atOnce {
			v.logger.InfoContext(ctx, "the files hold what is in use", v.attrs()...)
		}
	default:
		if err == nil {
			err = v.use(contents, sum)
		}
		if err == nil {
			v.logger.InfoContext(ctx, "read again; new connections use the new files", v.attrs()...)
			return
		}
		v.setFault(err)
		if atOnce || fault == nil || fault.Error() != err.Error() {
			v.logger.ErrorContext(ctx, "the new files cannot be used; what was read before stays in use", append(v.attrs(), "error", err)...)
		}
	}
}

func (v *Value[T]) setFault(err error) {
	status := v.Status()
	status.Fault = err
	v.status.Store(&status)
}

// attrs returns the attributes of a log line about the value.
func (v *Value[T]) attrs() []any {
	status := v.Status()
	attrs := []any{"what", v.name, "files", v.files}
	if !status.NotAfter.IsZero() {
		attrs = append(attrs, "not_after", status.NotAfter.UTC().Format(time.RFC3339))
	}
	return attrs
}
