package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// maxSecret bounds the bytes read from standard input. A pair of tokens in JSON has at
// most some 10 KiB.
const maxSecret = 64 << 10

// errInterrupted means that a signal came during a read of standard input, or that the input
// ended at a prompt.
var errInterrupted = errors.New("interrupted")

// readPassword reads a password: from the terminal without echo, twice for a new
// password; or one line from standard input, if stdin is true or standard input is no
// terminal. Errors: errInterrupted.
func (t Terminal) readPassword(ctx context.Context, stdin, isNew bool) (string, error) {
	if stdin || !t.inIsTerminal() {
		line, err := await(ctx, t.readLine)
		if err != nil {
			return "", fmt.Errorf("reading the password: %w", err)
		}
		return line, nil
	}
	first, err := t.prompt(ctx, "Password: ")
	if err != nil || !isNew {
		return first, err
	}
	again, err := t.prompt(ctx, "Again: ")
	if err == nil && again != first {
		err = errors.New("the passwords differ")
	}
	return first, err
}

func (t Terminal) inIsTerminal() bool { return term.IsTerminal(int(t.In.Fd())) }

// inIsGiven reports whether standard input may hold a token: standard input is no terminal
// and not the null device. An empty file or pipe counts as given, since the command that
// should have written the token may have failed.
func (t Terminal) inIsGiven() bool { return !t.inIsTerminal() && !isNull(t.In) }

// prompt asks for a password. The label goes to standard error, so that the label is not part
// of the command's output. After prompt, also after an error, the terminal shows typed text
// again. Errors: errInterrupted.
func (t Terminal) prompt(ctx context.Context, label string) (string, error) {
	fmt.Fprint(t.Err, label)
	before, err := term.MakeRaw(int(t.In.Fd())) // raw mode, since [term.ReadPassword] ignores Ctrl-D
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	typed, err := await(ctx, func() (string, error) { return readTyped(t.In) })
	err = errors.Join(err, term.Restore(int(t.In.Fd()), before))
	fmt.Fprintln(t.Err)
	switch {
	case errors.Is(err, errInterrupted) || errors.Is(err, io.EOF):
		return "", errInterrupted
	case err != nil:
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return typed, nil
}

// A terminal in raw mode does not handle these keys itself, so the program must handle the
// keys.
const (
	ctrlC, ctrlD, ctrlU, ctrlW, ctrlBackslash = 3, 4, 21, 23, 28
	backspace, deletes                        = 8, 127
)

// readTyped reads a line from a raw terminal, byte by byte: the next line stays for the next
// prompt. Errors: errInterrupted after Ctrl-C or Ctrl-\; io.EOF after Ctrl-D on an empty
// line.
func readTyped(in io.Reader) (string, error) {
	var line []byte
	for key := make([]byte, 1); len(line) < maxSecret; {
		if _, err := io.ReadFull(in, key); err != nil {
			return "", err
		}
		switch key[0] {
		case '\r', '\n':
			return string(line), nil
		case ctrlC, ctrlBackslash:
			return "", errInterrupted
		case ctrlD:
			if len(line) == 0 {
				return "", io.EOF
			}
		case ctrlU, ctrlW: // Ctrl-W deletes the line too: the user cannot see the words of a password
			line = line[:0]
		case backspace, deletes:
			_, size := utf8.DecodeLastRune(line)
			line = line[:len(line)-size]
		default:
			line = append(line, key[0])
		}
	}
	return "", fmt.Errorf("longer than %d bytes", maxSecret)
}

// await calls read, which waits for input, and returns the result. If ctx ends before the
// input has come, await returns at once, and read continues until the end of the process.
// Errors: errors of read; errInterrupted.
func await(ctx context.Context, read func() (string, error)) (string, error) {
	if ctx.Err() != nil {
		return "", errInterrupted
	}
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		return r.text, r.err
	case <-ctx.Done():
		return "", errInterrupted
	}
}

// showPassword prints the password of the first admin: alone for a script, and in a
// sentence at a terminal. The password is stored nowhere else, so a failed write is an
// error, and the server does not start. discarded reports that standard output is the null
// device, by the choice of the operator.
func (t Terminal) showPassword(password string) (discarded bool, err error) {
	format := "%s\n"
	f, isFile := t.outFile()
	switch {
	case t.outIsTerminal():
		format = "This database is new. The first user is admin, with this password, which is shown only now:\n\n    %s\n\n"
	case isFile && isClosed(f):
		return false, errors.New("standard output is closed, or is the null device, opened for reading too" + startAgain)
	case isFile && isNull(f):
		return true, nil
	}
	if _, err := fmt.Fprintf(t.Out, format, password); err != nil {
		return false, fmt.Errorf("standard output: %w%s", err, startAgain)
	}
	if isFile {
		err = syncRegular(f) // on a full disk the write may succeed, and the sync fail
	}
	if err != nil {
		return false, fmt.Errorf("standard output: %w%s", err, startAgain)
	}
	return false, nil
}

// outFile returns the file of standard output; false if a test has replaced the file by another
// writer.
func (t Terminal) outFile() (*os.File, bool) {
	out := t.Out
	if e, ok := out.(escaping); ok {
		out = e.to
	}
	f, ok := out.(*os.File)
	return f, ok
}

func (t Terminal) outIsTerminal() bool {
	f, ok := t.outFile()
	return ok && term.IsTerminal(int(f.Fd()))
}

// startAgain is the end of an error text that tells the operator how to get the first admin's
// password.
const startAgain = ": the database has no user yet; start again with a standard output that takes the password, or with --initial-password-file"

// syncRegular writes a regular file to the disk; pipes and devices cannot be synced.
func syncRegular(f *os.File) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return f.Sync()
}

// isNull reports whether a file is the null device.
func isNull(f *os.File) bool {
	null, err := os.Stat(os.DevNull)
	out, outErr := f.Stat()
	return err == nil && outErr == nil && os.SameFile(null, out)
}

// readLine reads a line from standard input, and returns the line without the line break. The
// last line can lack a line break.
func (t Terminal) readLine() (string, error) {
	line, err := bufio.NewReader(io.LimitReader(t.In, maxSecret)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// readAll reads all of standard input, without spaces at both ends: a token, or JSON
// with a token. Empty input is wrong usage.
func (t Terminal) readAll() (string, error) {
	data, err := io.ReadAll(io.LimitReader(t.In, maxSecret))
	if err != nil {
		return "", fmt.Errorf("reading standard input: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "", usageError{errors.New("standard input is empty: give the token on standard input")}
	}
	return text, nil
}
