// Package tokensource calls services that a Verifier of package authn guards. A
// [Source] signs in at Watchword and puts an access token on every call of a
// connection; [Forward] passes on the token of a handler's own caller; [Dial] makes
// the connection to Watchword.
//
//	authConn, err := tokensource.Dial("auth:50051", grpc.WithTransportCredentials(tls))
//	if err != nil {
//		return err
//	}
//	defer authConn.Close()
//	source, err := tokensource.Password(authConn, "billing", password)
//	if err != nil {
//		return err
//	}
//	defer source.Close()
//	conn, err := grpc.NewClient("notes:443", append(source.DialOptions(), grpc.WithTransportCredentials(tls))...)
//	if err != nil {
//		return err
//	}
//	defer conn.Close()
//	resp, err := notesv1.NewNotesServiceClient(conn).ListNotes(ctx, new(notesv1.ListNotesRequest))
//
// What the package promises:
//
//   - No secret (password, refresh token, access token) leaves this machine over a
//     connection without TLS, unless [WithPlaintextToOtherHosts] allows it. The
//     connection that carries the call is checked, for each call. Only the caller of
//     [Source.Token] has to check the connection itself.
//   - No call is made twice unless the called service itself refused the token
//     before any work was done.
//   - No secret appears in a log, in an error or in the text of a Source.
//   - A Source puts little load on Watchword: one request at a time, pauses after
//     failures, and a bound on the renewals that a service can cause by refusing.
//
// To be safe, a program
//
//   - gives each guarded service a token for that service alone ([WithAudience]): a
//     service can use the token that it was shown wherever the token is good;
//   - keeps a refresh token in one place, readable by its owner alone ([WithStore]):
//     Watchword ends the session if two programs use the same one (RFC 9700 section
//     4.14);
//   - forwards a token only to services that may do everything that its caller may;
//   - closes a Source, then the connections.
//
// Everything here may be used by any number of goroutines and connections at once.
// Times are measured by the monotonic clock.
package tokensource
