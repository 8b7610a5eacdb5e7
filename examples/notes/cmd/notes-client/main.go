// Command notes-client shows the calling side step by step: log in, call a guarded service,
// refresh the tokens, log out, and be refused. notes-client prints a line for each step, and exits
// with status 1 at the first unexpected result.
//
//	notes-client --username alice < password-file
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"

	notesv1 "example.com/notes/gen/notes/v1"
)

const (
	// walkTimeout limits all steps together, after the password was typed.
	walkTimeout = 30 * time.Second
	// logoutTimeout limits the time until the service knows of a logout. The time is ordinarily
	// some milliseconds, and longer on a machine under load.
	logoutTimeout = 5 * time.Second
	// pollInterval is the precision of the printed time between the logout and the refusal.
	pollInterval = 5 * time.Millisecond
)

type config struct {
	addr, authAddr, caFile, username string
	insecure                         bool
}

func main() {
	var c config
	flag.StringVar(&c.addr, "addr", "127.0.0.1:50061", "address of the notes server, in plaintext")
	flag.StringVar(&c.authAddr, "auth-addr", "127.0.0.1:50051", "address of the Watchword server")
	flag.StringVar(&c.caFile, "ca-file", "", "PEM certificates to trust for TLS to Watchword; none: plaintext, to this machine alone")
	flag.StringVar(&c.username, "username", "", "user to log in; the password is the first line of standard input")
	flag.BoolVar(&c.insecure, "plaintext-to-other-hosts", false, "send the password and the tokens in plaintext to other machines too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "notes-client:", printable(err.Error())) // the error can hold text of the servers
		os.Exit(1)
	}
}

func run(ctx context.Context, c config) error {
	if c.username == "" {
		return errors.New("--username is missing")
	}
	if err := c.keepPrivate(); err != nil { // checked before the password is read
		return err
	}
	password, err := readPassword(c.username)
	if err != nil {
		return fmt.Errorf("reading the password from standard input: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, walkTimeout)
	defer cancel()
	authConn, err := dialWatchword(c.authAddr, c.caFile)
	if err != nil {
		return fmt.Errorf("connecting to Watchword: %w", err)
	}
	defer authConn.Close()
	notesConn, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connecting to notes: %w", err)
	}
	defer notesConn.Close()

	w := walk{
		auth:  watchwordv1.NewAuthServiceClient(authConn),
		notes: notesv1.NewNotesServiceClient(notesConn),
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"log in", func(ctx context.Context) (string, error) { return w.login(ctx, c.username, password) }},
		{"list notes", w.list},
		{"list notes without a token", w.listWithoutToken},
		{"add a note", w.add},
		{"search the notes", w.search},
		{"refresh", w.refresh},
		{"list notes with the new token", w.list},
		{"log out", w.logout},
		{"list notes after the logout", w.awaitRefusal},
	} {
		outcome, err := step.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("%s: %s\n", step.name, outcome)
	}
	return nil
}

// walk has one session and the clients of two services. Each method is a step, and returns the
// result for the output, or an error for an unexpected result.
type walk struct {
	auth   watchwordv1.AuthServiceClient
	notes  notesv1.NotesServiceClient
	tokens *watchwordv1.TokenPair
}

func (w *walk) login(ctx context.Context, username, password string) (string, error) {
	resp, err := w.auth.Login(ctx, &watchwordv1.LoginRequest{Username: username, Password: password})
	if err != nil {
		return "", err
	}
	w.tokens = resp.GetTokens()
	return fmt.Sprintf("ok, the access token lives %v", w.tokens.GetExpiresIn().AsDuration().Round(time.Second)), nil
}

func (w *walk) list(ctx context.Context) (string, error) {
	resp, err := w.notes.ListNotes(w.authorized(ctx), &notesv1.ListNotesRequest{})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("ok, there are %d", len(resp.GetNotes())), nil
}

func (w *walk) listWithoutToken(ctx context.Context) (string, error) {
	_, err := w.notes.ListNotes(ctx, &notesv1.ListNotesRequest{})
	if err := expect(err, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_MISSING); err != nil {
		return "", err
	}
	return "refused with TOKEN_MISSING", nil
}

// add accepts a refusal too, because the user may lack the role writer.
func (w *walk) add(ctx context.Context) (string, error) {
	resp, err := w.notes.AddNote(w.authorized(ctx), &notesv1.AddNoteRequest{Text: "Hello from notes-client."})
	if err == nil {
		return fmt.Sprintf("ok, note %d by %q", resp.GetNote().GetId(), resp.GetNote().GetAuthor()), nil
	}
	if err := expect(err, watchwordv1.ErrorReason_ERROR_REASON_ROLE_REQUIRED); err != nil {
		return "", err
	}
	return "refused with ROLE_REQUIRED", nil
}

// search searches the notes by SearchNotes. A notes service that was started without the service
// "search" refuses the call; search then says so, and the walk goes on.
func (w *walk) search(ctx context.Context) (string, error) {
	resp, err := w.notes.SearchNotes(w.authorized(ctx), &notesv1.SearchNotesRequest{Word: "hello"})
	if status.Code(err) == codes.FailedPrecondition {
		return "the notes service was started without the service search", nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("ok, %d found; search was called for %q by %q", len(resp.GetNotes()), resp.GetSubject(), resp.GetActor()), nil
}

// refresh replaces the access token and the refresh token. The old access token stays good until
// its expiry; the old refresh token must not be used again.
func (w *walk) refresh(ctx context.Context) (string, error) {
	resp, err := w.auth.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: w.tokens.GetRefreshToken()})
	if err != nil {
		return "", err
	}
	w.tokens = resp.GetTokens()
	return "ok, two new tokens", nil
}

func (w *walk) logout(ctx context.Context) (string, error) {
	_, err := w.auth.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: w.tokens.GetRefreshToken()})
	return "ok", err
}

// awaitRefusal calls the service again and again, until the call is refused.
func (w *walk) awaitRefusal(ctx context.Context) (string, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, logoutTimeout)
	defer cancel()
	again := time.NewTicker(pollInterval)
	defer again.Stop()
	for {
		_, err := w.notes.ListNotes(w.authorized(ctx), &notesv1.ListNotesRequest{})
		if err != nil {
			if err := expect(err, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED); err != nil {
				return "", err
			}
			return fmt.Sprintf("refused with TOKEN_REVOKED, %v after the logout", time.Since(began).Round(time.Microsecond)), nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return "", fmt.Errorf("still accepted %v after the logout", time.Since(began).Round(time.Millisecond))
		}
	}
}

// authorized returns the context for a call with the access token. Other programs use a
// tokensource.Source; notes-client does without a Source, to show each step.
func (w *walk) authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+w.tokens.GetAccessToken())
}

// expect returns an error unless err is a refusal with the reason want.
func expect(err error, want watchwordv1.ErrorReason) error {
	if err == nil {
		return fmt.Errorf("ok, want %v", want)
	}
	if authn.Reason(err) != want {
		return fmt.Errorf("%w, want %v", err, want)
	}
	return nil
}

// readPassword returns the first line of standard input. At a terminal, readPassword asks for the
// password, and the terminal does not show the password.
func readPassword(username string) (password string, err error) {
	fd := int(os.Stdin.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil { // standard input is a file or a pipe
		return readLine(os.Stdin)
	}
	defer func() {
		if err = errors.Join(err, term.Restore(fd, before)); err != nil {
			fmt.Fprintln(os.Stderr) // ends the line of the prompt
		}
	}()
	terminal := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{os.Stdin, os.Stderr}, "")
	return terminal.ReadPassword("Password of " + printable(username) + ": ") // io.EOF after Ctrl-C
}

// readLine returns the first line without its end.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil && (err != io.EOF || line == "") {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// keepPrivate returns an error if the password or a token would go in plaintext to another
// machine. Programs need no such check if they use a tokensource.Source, which checks every
// connection.
func (c config) keepPrivate() error {
	for name, addr := range map[string]string{"--addr": c.addr, "--auth-addr": c.authAddr} {
		if encrypted := name == "--auth-addr" && c.caFile != ""; !encrypted && !c.insecure && !thisMachine(addr) {
			return fmt.Errorf("%s is another machine, and everyone on the path could read the password or the tokens: "+
				"give --ca-file for TLS to Watchword, or --plaintext-to-other-hosts if the network is protected by other means", name)
		}
	}
	return nil
}

// thisMachine reports whether an address is loopback or a Unix socket. Any other host name
// may be another machine.
func thisMachine(addr string) bool {
	if strings.HasPrefix(addr, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// printable returns text for a terminal: control characters, which could move the cursor,
// become question marks.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// dialWatchword returns a connection to Watchword. grpc-go connects at the first call.
func dialWatchword(addr, caFile string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if caFile != "" {
		var err error
		if creds, err = credentials.NewClientTLSFromFile(caFile, ""); err != nil {
			return nil, err
		}
	}
	return tokensource.Dial(addr, grpc.WithTransportCredentials(creds))
}
