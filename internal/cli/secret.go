package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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
