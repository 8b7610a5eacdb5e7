package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	protoenc "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/roster"
	"github.com/watchword-auth/watchword/internal/share"
)

// errNoCertificate means that the called method, such as WatchBundle, needs a client
// certificate (--client-ca), and that the client has shown none.
var errNoCertificate = errors.New("no client certificate")

// maxNonceLength is the largest length, in bytes, of the nonce that a client sends to GetTime
// and that GetTime sends back.
const maxNonceLength = 64

// Trust serves TrustService, from which verifiers get the keys and revocations (the
// trust bundle).
type Trust struct {
	Watchers
	Hub    *hub.Hub
	Logger *slog.Logger
	// NeedCertificate makes WatchBundle, ReportWatcher and GetTime refuse a client without a
	// certificate: the trust bundle holds the ids of sessions and users, beside the public
	// keys.
	NeedCertificate bool
	Known           *share.Known
}

// GetKeySet serves TrustService/GetKeySet: the public keys alone.
func (t *Trust) GetKeySet(context.Context, *watchwordv1.GetKeySetRequest) (*watchwordv1.GetKeySetResponse, error) {
	trust := t.Hub.TrustState()
	resp := &watchwordv1.GetKeySetResponse{Issuer: trust.GetIssuer()}
	for _, key := range trust.GetKeys() {
		resp.Keys = append(resp.Keys, key.GetKey())
	}
	return resp, nil
}

// GetTime serves TrustService/GetTime: the answer has the wall clock and the elapsed time of
// this process, read during the call.
func (t *Trust) GetTime(ctx context.Context, req *watchwordv1.GetTimeRequest) (*watchwordv1.GetTimeResponse, error) {
	if from, ok := peer.FromContext(ctx); t.NeedCertificate && (!ok || clientCertificate(from) == nil) {
		return nil, errNoCertificate
	}
	if len(req.GetNonce()) > maxNonceLength {
		return nil, invalidField{"nonce", fmt.Errorf("is longer than %d bytes", maxNonceLength)}
	}
	return &watchwordv1.GetTimeResponse{Nonce: req.GetNonce(), Times: t.Hub.Times()}, nil
}

// sendTimeout bounds how long a client of WatchBundle can leave a message unread after the
// buffers of the client's connection are full. While the client leaves the message unread, the
// client's watcher keeps the message in memory, and other watchers from the same network can
// have to wait for their snapshots.
const sendTimeout = 30 * time.Second

// WatchBundle serves TrustService/WatchBundle: the stream of messages from the hub to one
// verifier. A client that reads too slowly, or that knows later changes than this replica, gets
// UNAVAILABLE and watches again. Package hub has a bounded number of places for streams: a
// client without a place, and a client that loses its place to another client, get
// RESOURCE_EXHAUSTED.
func (t *Trust) WatchBundle(req *watchwordv1.WatchBundleRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchBundleResponse]) error {
	ctx := stream.Context()
	if len(req.GetWatcher()) > maxWatcherID {
		return invalidField{"watcher", fmt.Errorf("is longer than %d bytes", maxWatcherID)}
	}
	from, watching, err := t.clientOf(ctx, req.GetWatcher())
	if err != nil {
		return err
	}
	if watching.Certified {
		t.Known.Add(watching.Name, watching.Name)
		t.Known.Add(caller.SourceOf(ctx).Network(), watching.Name)
	}
	watcher, err := t.Hub.Watch(ctx, watching, req.GetResume())
	if errors.Is(err, hub.ErrOutdated) {
		return status.Error(codes.Unavailable, "this replica is behind what the client has: try again, or use another replica")
	}
	if err != nil {
		return err
	}
	defer t.Roster.Opened(from).Close()
	// SendMsg blocks while the client does not read, and cannot be cancelled. Therefore SendMsg
	// runs in a separate goroutine, and the handler returns before SendMsg when the timer
	// unread fires.
	unread := time.NewTimer(sendTimeout)
	defer unread.Stop()
	sending := detach.Go(func() error {
		defer watcher.Close()
		for {
			unread.Stop()
			message, err := watcher.Next(ctx)
			if err != nil {
				return err
			}
			unread.Reset(sendTimeout)
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		}
	})
	select {
	case <-sending.Done():
		err = sending.Result()
	case <-watcher.Evicted():
		sending.Leave(LogLate(t.Logger)) // LogLate logs a panic of SendMsg, which may still be blocked
		return hub.ErrEvicted
	case <-unread.C:
		watcher.LeftUnread()
		sending.Leave(LogLate(t.Logger))
		return status.Error(codes.Unavailable, "the client left messages unread for too long: watch again")
	}
	if errors.Is(err, hub.ErrBehind) {
		return status.Error(codes.Unavailable, "the client fell behind: watch again")
	}
	return err
}

// clientOf returns the client of a stream in two forms: for the roster, which lists watchers,
// and for the hub, which bounds their streams. Errors: errNoCertificate.
func (t *Trust) clientOf(ctx context.Context, watcher []byte) (roster.Client, hub.Peer, error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		from = &peer.Peer{}
	}
	cert := clientCertificate(from)
	if t.NeedCertificate && cert == nil {
		return roster.Client{}, hub.Peer{}, errNoCertificate
	}
	source := caller.SourceOf(ctx)
	client := roster.Client{Watcher: watcher, Address: string(source)}
	watching := watcherPeer(from, cert, source)
	if watching.Certified {
		client.Certificate = shownName(cert)
	}
	return client, watching, nil
}

// LogLate returns a function for [detach.Call.Leave] that logs the panic of a handler
// after the end of its stream.
func LogLate(logger *slog.Logger) func(fault any, stack []byte) {
	return func(fault any, stack []byte) {
		logger.Error("panic in a handler after the end of its stream", "panic", fault, "stack", string(stack))
	}
}

// Codec returns protobuf's codec, extended to send a [hub.Message] unchanged: the hub
// has encoded the message once for all watchers. WatchBundle needs Codec.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(protoenc.Name)} }

type codec struct{ encoding.CodecV2 }

// Marshal encodes any message. A [hub.Message] is encoded already, and Marshal returns its
// bytes.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if encoded, ok := v.(hub.Message); ok {
		return mem.BufferSlice{mem.SliceBuffer(encoded)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// clientCertificate returns the certificate that the client showed and that the TLS
// handshake verified, or nil.
func clientCertificate(p *peer.Peer) *x509.Certificate {
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// watcherPeer returns the peer by which the streams of a watcher are bounded: the name in the
// client certificate, or else the client's network. If a trusted proxy has forwarded the call,
// the certificate belongs to the proxy, and watcherPeer returns the network.
func watcherPeer(from *peer.Peer, cert *x509.Certificate, source caller.Source) hub.Peer {
	direct := caller.Proxies{}.Source(from.Addr, nil)
	if cert == nil || direct != source {
		return hub.Peer{Name: source.Network()}
	}
	return hub.Peer{Name: certificateName(cert), Certified: true}
}

// certificateName returns the name in a certificate: the first URI, such as a SPIFFE id; or
// else the first DNS name; or else the subject. The CA has signed the list of names with its
// order, so a client cannot choose another name. The result begins with the kind of the name,
// since a subject may look like a DNS name or a network.
func certificateName(cert *x509.Certificate) string {
	switch {
	case len(cert.URIs) > 0:
		return "URI " + cert.URIs[0].String()
	case len(cert.DNSNames) > 0:
		return "DNS " + cert.DNSNames[0]
	}
	return "subject " + string(cert.RawSubject)
}
