package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/watchword-auth/watchword/internal/password"
)

// maxSecret bounds what is read from standard input, in bytes.
const maxSecret = 64 << 10

// newPassword reads a password that is to be set.
func (t Terminal) newPassword(stdin bool) (password.Password, error) {
	text, err := t.readPassword(stdin, true)
	if err != nil {
		return password.Password{}, err
	}
	pw, err := password.Parse(text)
	if err != nil {
		return password.Password{}, fmt.Errorf("password: %w", err)
	}
	return pw, nil
}

// readPassword reads a password from the terminal without echo, asking twice
// where it is a new one, or one line from standard input.
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

func (t Terminal) prompt(label string) (string, error) {
	fmt.Fprint(t.Err, label)
	typed, err := term.ReadPassword(int(t.In.Fd()))
	fmt.Fprintln(t.Err)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return string(typed), nil
}

// showPassword prints the password of the first admin: by itself for a script, and
// in a sentence at a terminal. A password that cannot be printed is an error,
// since there is no other copy.
func (t Terminal) showPassword(password string) error {
	format := "%s\n"
	if f, ok := t.Out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		format = "This database is new. The first user is admin, with this password, which is shown only now:\n\n    %s\n\n"
	} else if ok && isNull(f) {
		return errors.New("standard output is closed or " + os.DevNull + setAnother)
	}
	if _, err := fmt.Fprintf(t.Out, format, password); err != nil {
		return fmt.Errorf("standard output: %w%s", err, setAnother)
	}
	return nil
}

const setAnother = "; set another password by `watchword user set-password admin` on the same --datastore-uri, and start again"

// isNull says whether a file is the null device, which the Go runtime also opens
// in place of a standard output that was closed.
func isNull(f *os.File) bool {
	null, err := os.Stat(os.DevNull)
	out, outErr := f.Stat()
	return err == nil && outErr == nil && os.SameFile(null, out)
}

func (t Terminal) readLine() (string, error) {
	line, err := bufio.NewReader(io.LimitReader(t.In, maxSecret)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// readAll reads a token, or the JSON that holds it, from standard input.
func (t Terminal) readAll() (string, error) {
	data, err := io.ReadAll(io.LimitReader(t.In, maxSecret))
	if err != nil {
		return "", fmt.Errorf("reading standard input: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "", usageError{errors.New("standard input is empty: give the token there")}
	}
	return text, nil
}
