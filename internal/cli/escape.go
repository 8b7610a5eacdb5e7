package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// escaping writes text with every character escaped that a terminal could obey or hide: control
// characters such as ESC, and format characters such as the right-to-left override. Line breaks
// and tabs stay as they are. [Main] puts an escaping around standard output and standard error,
// so that no command and no log line can forget the escaping: a name in the database or a
// message of a server can hold control characters.
type escaping struct {
	to   io.Writer
	line *workLine // the line that shows that the command is at work, removed before text is written
}

// Write writes a text, with an escape for each character that a terminal could obey or hide.
// The text must not end within a character; the packages that write to an escaping (fmt,
// tabwriter, slog, kong) write whole words or lines.
func (e escaping) Write(p []byte) (int, error) {
	e.line.remove()
	if _, err := io.WriteString(e.to, escape(string(p), "\n\t")); err != nil {
		return 0, err
	}
	return len(p), nil
}

// escape replaces each character of a text that is not printable and not in keep. JSON too
// writes a character as \u001b, so escaped JSON stays JSON with the same meaning.
func escape(text, keep string) string {
	var out strings.Builder
	for i, r := range text {
		if _, size := utf8.DecodeRuneInString(text[i:]); r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&out, `\x%02x`, text[i])
		} else if unicode.IsPrint(r) || strings.ContainsRune(keep, r) {
			out.WriteRune(r)
		} else if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		} else {
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// oneLine returns a text with a space for each line break, so that a server's message
// cannot begin a line that looks like a message of this program.
func oneLine(text string) string { return strings.Join(strings.FieldsFunc(text, isLineBreak), " ") }

func isLineBreak(r rune) bool { return r == '\n' || r == '\r' || r == '\t' }
