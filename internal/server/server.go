// Package server assembles the other internal packages into a server, and runs the server:
// configuration, first start, listeners, TLS, interceptors, HTTP, readiness, and a stop that
// lets calls finish.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/delegation"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/gate"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/reload"
	"github.com/watchword-auth/watchword/internal/roster"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/telemetry"
	"github.com/watchword-auth/watchword/internal/throttle"
	"github.com/watchword-auth/watchword/internal/tracing"
	"github.com/watchword-auth/watchword/internal/transport"
	"github.com/watchword-auth/watchword/internal/user"
	"github.com/watchword-auth/watchword/internal/version"
)

// Server is an assembled server. Call New, then Run, then Close.
type Server struct {
	cfg    Config
	logger *slog.Logger
	drain  *drain
	issuer string // the issuer of the tokens, as the database has it

	proxies caller.Proxies
	limits  limits
	gate    *gate.Gate
	known   *share.Known

	store      *store.Store
	policy     password.Policy
	passwords  *password.Pool
	audit      *audit.Log
	events     *rpc.Audit
	feed       *feed.Feed
	roster     *roster.Roster
	users      *user.Users
	sessions   *session.Sessions
	delegation *delegation.Service
	logins     *login.Service
	trusted    *federation.Keys
	exchanger  *federation.Exchanger
	keys       *issuer.KeySet
	keyring    *issuer.Keyring
	verifier   *authn.Verifier

	files   *reload.Set
	tls     *tlsFiles // nil: the server runs without TLS
	grpc    *grpc.Server
	grpcLis *gate.Listener
	http    *http.Server
	httpLis *gate.Listener
	health  *health.Server

	readiness *readiness
	chores    []*chore
	calls     *telemetry.Calls
	traces    *tracing.Traces // exports tracing spans; nil: tracing is off

	closers []func() error // the steps of Close, in the order of opening
}

// New opens the database and the listeners, sets a new database up, and does not serve yet. If
// a step fails, New closes everything that it has opened. On a new database announce gets the
// password of the first admin, unless cfg.InitialPasswordFile names a file for the password. If
// announce fails, New fails, and the database has no user yet.
func New(ctx context.Context, cfg Config, logger *slog.Logger, announce func(password string) error) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if missing != "" {
		logger.Warn(missing)
	}
	logger = slog.New(tracing.Handler(logger.Handler(), gate.RequestID))
	s := &Server{
		cfg: cfg, logger: logger, drain: &drain{begun: make(chan struct{}), logger: logger}, known: share.NewKnown(knownNetworks),
		calls: new(telemetry.Calls), files: reload.NewSet(logger),
	}
	var err error
	if s.proxies, err = caller.ParseProxies(cfg.TrustedProxy); err != nil {
		return nil, err
	}
	if s.limits, err = cfg.limits(fileLimit()); err != nil {
		return nil, err
	}
	if s.policy, s.tls, err = cfg.readFiles(s.files); err != nil {
		return nil, err
	}
	s.traces = tracing.Open(ctx, version.String(), logger)
	s.onClose(func() error { s.traces.Close(0); return nil })
	if err := s.open(ctx, announce); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// open runs the steps of New in order. The cheap checks come before the database is
// changed: open listens on both addresses before setup, so that a server that cannot start
// leaves a new database without a user.
func (s *Server) open(ctx context.Context, announce func(password string) error) error {
	var err error
	if s.store, err = store.Open(ctx, s.cfg.DatastoreURI, store.WithLogger(s.logger)); err != nil {
		return err
	}
	s.onClose(s.store.Close)
	s.audit = audit.New(s.store, s.logger)
	master, err := s.cfg.masterKeys(ctx, s.store)
	if err != nil {
		return err
	}
	s.warnOfReaders(ctx)
	if err := s.listen(ctx); err != nil {
		return err
	}
	inst, err := s.setup(ctx, master, s.defaultIssuer(s.tls != nil), announce)
	if err != nil {
		return err
	}
	s.issuer = inst.issuer
	if err := s.assemble(ctx, inst, master); err != nil {
		return err
	}
	s.grpc = grpc.NewServer(s.grpcOptions()...)
	s.onClose(func() error { s.grpc.Stop(); return nil }) // ends the goroutines of streamWorkers, also without Run
	if err := s.register(); err != nil {
		return err
	}
	s.calls.Register(s.grpc.GetServiceInfo())
	s.readiness = newReadiness(s)
	s.chores = s.allChores()
	s.http = s.httpServer(inst.issuer)
	return nil
}

// defaultIssuer returns the issuer for a server without --issuer: the HTTP address of
// the one server of an embedded database. Replicas on PostgreSQL have several
// addresses, so there is no default issuer for PostgreSQL.
func (s *Server) defaultIssuer(secure bool) string {
	switch {
	case s.store.Path() == "":
		return ""
	case secure:
		return "https://" + s.HTTPAddr()
	}
	return "http://" + s.HTTPAddr()
}

// listen opens the gRPC address and the HTTP address. Serving begins in Run; until Run is
// called, connections wait.
func (s *Server) listen(ctx context.Context) error {
	grpcLis, err := transport.Listen(ctx, "--grpc-addr", s.cfg.GRPCAddr)
	if err != nil {
		return err
	}
	s.grpcLis = gate.Listen(grpcLis, s.proxies, s.limits.connections, s.limits.proxied, s.known)
	s.onClose(closeOnce(grpcLis))
	httpLis, err := transport.Listen(ctx, "--http-addr", s.cfg.HTTPAddr)
	if err != nil {
		return err
	}
	s.httpLis = gate.Listen(httpLis, s.proxies, s.limits.http, s.limits.http, s.known)
	s.onClose(closeOnce(httpLis))
	return nil
}

// assemble makes the parts that the gRPC services use, each after the parts that it needs. The
// server's own verifier comes last, since the first trust bundle of the verifier comes from the
// feed. The verifier reads the feed in this process, so the verifier needs neither a connection
// nor a token.
func (s *Server) assemble(ctx context.Context, inst *installation, master *seal.Keys) error {
	var err error
	s.keys = issuer.NewKeySet(master, s.logger)
	if s.feed, err = feed.Open(ctx, s.store, feed.Origin{Issuer: inst.issuer, DatabaseID: inst.databaseID, Keys: s.keys.Read}, s.logger); err != nil {
		return err
	}
	s.feed.Hub().LimitWatchers(s.limits.watchers, s.known)
	s.roster = roster.New(s.store, s.feed.Hub(), roster.Self{Address: s.place(), NeedsCertificate: s.cfg.ClientCA != ""}, s.logger)
	s.feed.OnQuestion(s.roster.Asked)
	tokens := issuer.New(s.store, s.keys, inst.issuer, s.cfg.ClientID, s.cfg.AccessTTL)
	s.keyring = issuer.NewKeyring(s.store, s.feed, s.keys, s.audit)
	s.passwords = s.hashPool(ctx)
	s.users = user.New(s.store, s.feed, s.passwords, s.audit)
	s.sessions, err = session.Open(ctx, session.Config{
		Audience: s.cfg.Audience, Grace: s.cfg.RefreshGrace, Repeats: s.cfg.RefreshRepeats, PerUser: s.cfg.MaxSessions,
		Lifetimes: session.Lifetimes{Idle: session.IdleTTL(s.cfg.RefreshTTL), Max: session.MaxTTL(s.cfg.SessionTTL)},
	}, session.Dependencies{
		Store: s.store, Feed: s.feed, Issuer: tokens, Users: s.users, Audit: s.audit, Master: master,
	})
	if err != nil {
		return err
	}
	resume, err := s.sessions.Key("resume token of the trust bundle")
	if err != nil {
		return err
	}
	s.feed.Hub().SealResume(resume)
	s.logins, err = login.New(s.store, s.feed, s.sessions, s.passwords, login.Limits{
		Limits:     throttle.Limits{FreeTries: s.cfg.ThrottleFreeTries, LongestDelay: s.cfg.ThrottleLongestDelay},
		SourceRate: s.cfg.ThrottleSourceRate,
	})
	if err != nil {
		return err
	}
	s.trusted = federation.OpenKeys(s.store, s.logger)
	s.onClose(s.trusted.Close)
	s.exchanger = federation.NewExchanger(s.store, s.trusted, tokens, s.audit, inst.issuer)
	s.verifier, err = authn.NewVerifier(ctx, s.feed.Hub().Conn(),
		authn.WithAudience(s.issuedFor()...),
		authn.WithPublicMethods("/grpc.health.v1.Health/*",
			"/grpc.reflection.v1.ServerReflection/*", "/grpc.reflection.v1alpha.ServerReflection/*"),
		authn.WithLogger(s.logger),
		authn.WithMeterProvider(noop.NewMeterProvider())) // authn's metrics would count every call of the verifier; package telemetry reads Status instead
	if err != nil {
		return fmt.Errorf("starting our own verifier: %w", err)
	}
	s.onClose(s.verifier.Close)
	s.delegation = &delegation.Service{Feed: s.feed, Issuer: tokens, Verifier: s.verifier, Audit: s.audit}
	return nil
}

// issuedFor returns every audience for which the server issues tokens.
func (s *Server) issuedFor() []string {
	return append(slices.Clone(s.cfg.Audience), caller.AdminAudience)
}

// hashPool makes the pool of password hashes, and logs the pool's size, since the size may
// depend on the memory of the machine.
func (s *Server) hashPool(ctx context.Context) *password.Pool {
	memory := s.cfg.HashMemory
	if memory == 0 {
		var err error
		if memory, err = processLimits().hashMemory(); err != nil {
			s.logger.WarnContext(ctx, "the memory limit of the cgroup is unknown; give --hash-memory", "error", err)
		}
	}
	pool := password.NewPool(password.Config{Memory: int64(memory), Policy: s.policy, Known: s.known})
	s.logger.InfoContext(ctx, "hashing passwords", "memory", memory.String(), "at_a_time", pool.Parallel(),
		"min_length", s.cfg.MinPasswordLength, "listed_passwords", s.policy.List.Len())
	return pool
}

// register registers every service, and checks that each method has an access rule in
// its proto file: a method without a rule would refuse every call.
func (s *Server) register() error {
	services := s.gate.Registrar(s.grpc)
	watchwordv1.RegisterAuthServiceServer(services, &rpc.Auth{Logins: s.logins, Sessions: s.sessions, Delegate: s.delegation, Exchange: s.exchanger, Verifier: s.verifier, Audience: s.issuedFor(), Known: s.known})
	watchwordv1.RegisterTrustServiceServer(services, &rpc.Trust{Hub: s.feed.Hub(), Logger: s.logger, NeedCertificate: s.cfg.ClientCA != "", Known: s.known, Watchers: rpc.Watchers{Roster: s.roster}})
	watchwordv1.RegisterUserServiceServer(services, &rpc.Users{Users: s.users})
	watchwordv1.RegisterSessionServiceServer(services, &rpc.Sessions{Sessions: s.sessions.Admin})
	watchwordv1.RegisterKeyServiceServer(services, &rpc.Keys{Keyring: s.keyring})
	s.events = rpc.NewAudit(s.store, s.logger)
	watchwordv1.RegisterAuditServiceServer(services, s.events)
	watchwordv1.RegisterFederationServiceServer(services, &rpc.Federation{Registry: federation.NewRegistry(s.store, s.feed, s.audit), Keys: s.trusted})
	s.health = health.NewServer()
	healthv1.RegisterHealthServer(services, s.health)
	reflection.Register(services)
	return s.verifier.CheckServices(s.grpc.GetServiceInfo())
}

// place returns where the server runs, as a text for ListWatchers: the name of the machine, and
// the address of the gRPC listener.
func (s *Server) place() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown machine"
	}
	return host + " " + s.GRPCAddr()
}

// GRPCAddr returns the address of the gRPC listener.
func (s *Server) GRPCAddr() string { return s.grpcLis.Addr().String() }

// HTTPAddr returns the address of the HTTP listener.
func (s *Server) HTTPAddr() string { return s.httpLis.Addr().String() }

// Run serves until ctx ends, and then stops: Run turns readiness off, serves for the shutdown
// delay (--shutdown-delay), and lets calls in flight finish for at most the drain timeout
// (--drain-timeout). Run returns nil after a clean stop. Call Run once.
//
// The background tasks end after the calls, since the last calls need the feed and the
// security record.
func (s *Server) Run(ctx context.Context) error {
	background, stop := context.WithCancel(caller.WithSource(context.WithoutCancel(ctx), caller.Server))
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stop()
	tasks.Go(func() { s.feed.Run(background) })
	tasks.Go(func() { s.audit.Run(background) })
	tasks.Go(func() { s.roster.Run(background) })
	tasks.Go(func() { s.trusted.Run(background) })
	tasks.Go(func() { s.maintain(background) })
	tasks.Go(func() { s.files.Run(background) })
	s.readiness.look(background)
	tasks.Go(func() { s.readiness.run(background) })

	failed := make(chan error, 2) // has room for the errors of both servers, so that no goroutine is left blocked
	go func() { failed <- s.grpc.Serve(s.grpcLis) }()
	go func() { failed <- s.serveHTTP() }()
	s.logReady(ctx)

	var err error
	select {
	case <-ctx.Done():
		s.logger.InfoContext(ctx, "stopping; a second signal ends the server at once",
			"shutdown_delay", s.cfg.ShutdownDelay, "drain_timeout", s.cfg.DrainTimeout)
		s.announceStop()
		select {
		case <-time.After(s.cfg.ShutdownDelay):
		case err = <-failed:
		}
	case err = <-failed:
	}
	s.stop()
	return err
}

// logReady writes the log line `ready`, which shows what an operator has to check first: the
// addresses, the version, the database, the issuer and the audiences of tokens, and TLS.
func (s *Server) logReady(ctx context.Context) {
	s.logger.InfoContext(ctx, "ready", "grpc", s.GRPCAddr(), "http", s.HTTPAddr(),
		"version", version.String(), "database", s.store.Address(),
		"issuer", s.issuer, "audiences", s.issuedFor(),
		"tls", s.cfg.TLSCert != "", "client_ca", s.cfg.ClientCA != "")
}

// announceStop turns readiness off, over HTTP and in the gRPC health service. The gRPC address
// and the HTTP address continue to serve: a load balancer needs some time until it sends no
// more calls.
func (s *Server) announceStop() {
	s.drain.announce()
	s.health.Shutdown()
}

// arrivalTime is how long requests can still arrive after the server has told clients to use
// another connection (GOAWAY). A client that has sent a request before the GOAWAY gets the
// answer, since a round trip takes less than a second.
const arrivalTime = time.Second

// stop turns readiness off, ends the streams, and waits for calls in flight, for at
// most the drain timeout (--drain-timeout). Silent connections ([gate.Listener]) end at once,
// and requests that have not arrived whole end after [arrivalTime]. In the rest of the drain
// timeout, stop sends the spans of the calls.
func (s *Server) stop() {
	s.announceStop()
	s.drain.begin()
	s.grpcLis.CloseSilent()
	s.httpLis.CloseSilent()
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if s.http.Shutdown(ctx) != nil {
			_ = s.http.Close()
		}
	})
	tasks.Go(func() {
		defer context.AfterFunc(ctx, s.grpc.Stop)()
		defer time.AfterFunc(arrivalTime, s.gate.Stop).Stop()
		s.grpc.GracefulStop()
	})
	tasks.Wait()
	left, _ := ctx.Deadline()
	s.traces.Close(time.Until(left))
}

// Close closes everything that New has opened, in reverse order. Call Close after Run
// has returned, or instead of Run.
func (s *Server) Close() error {
	var errs []error
	for _, closer := range slices.Backward(s.closers) {
		errs = append(errs, closer())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// onClose adds a step to Close. Close runs the steps in reverse order.
func (s *Server) onClose(closer func() error) { s.closers = append(s.closers, closer) }

// closeOnce returns a function that closes a listener, and returns nil if the gRPC or
// HTTP server has closed the listener before.
func closeOnce(l net.Listener) func() error {
	return func() error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}
