package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// maxSecret bounds the bytes read from standard input. A pair of tokens in JSON has at
// most some 10 KiB.
const maxSecret = 64 << 10

// readPassword reads a password: from the terminal without echo, twice for a new
// password; or one line from standard input, if stdin is true or standard input is no
// terminal.
func (t Terminal) readPassword(stdin, isNew bool) (string, error) {
	if stdin || !term.IsTerminal(int(t.In.Fd())) {
		line, err := t.readLine()
		if err != nil {
			return "", fmt.Errorf("reading the password: %w", err)
		}
		return line, nil
	}
	first, err := t.prompt("Password: ")
	if err != nil || !isNew {
		return first, err
	}
	again, err := t.prompt("Again: ")
	if err == nil && again != first {
		err = errors.New("the passwords differ")
	}
	return first, err
}

// prompt asks for a password. The label goes to standard error, so that it is not part
// of the command's output.
func (t Terminal) prompt(label string) (string, error) {
	fmt.Fprint(t.Err, label)
	typed, err := term.ReadPassword(int(t.In.Fd()))
	fmt.Fprintln(t.Err)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return string(typed), nil
}

// showPassword prints the password of the first admin: alone for a script, and in a
// sentence at a terminal. The password is stored nowhere else, so a failed write is an
// error, and the server does not start.
func (t Terminal) showPassword(password string) error {
	out := t.Out
	if e, ok := out.(escaping); ok {
		out = e.to
	}
	format := "%s\n"
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		format = "This database is new. The first user is admin, with this password, which is shown only now:\n\n    %s\n\n"
	} else if ok && isNull(f) {
		return errors.New("standard output is closed or " + os.DevNull + setAnother)
	}
	if _, err := fmt.Fprintf(t.Out, format, password); err != nil {
		return fmt.Errorf("standard output: %w%s", err, setAnother)
	}
	return nil
}

// setAnother tells the operator how to get in after the first admin's password was
// lost: the admin exists, so no later start prints a password.
const setAnother = "; set another password by `watchword user set-password admin` on the same --datastore-uri, and start again"

// isNull reports whether a file is the null device. If standard output is closed, the
// Go runtime opens the null device in its place.
func isNull(f *os.File) bool {
	null, err := os.Stat(os.DevNull)
	out, outErr := f.Stat()
	return err == nil && outErr == nil && os.SameFile(null, out)
}

// readLine reads a line from standard input, without the line break. The last line may
// have none.
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
