package settings

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// tolerant reads the value of a flag. A value that is missing or wrong becomes a fault, and the
// flag gets its default: kong then goes on, and finds the faults of the other flags. tolerant
// reads values of the command line, of environment variables and of the file of --config.
type tolerant struct {
	s      *Settings
	mapper kong.Mapper // kong's mapper for the type of the flag
}

// Decode implements [kong.Mapper].
func (t tolerant) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	fault := t.read(ctx, target)
	if fault == "" {
		return nil
	}
	name := ctx.Value.Name
	t.s.wrong = append(t.s.wrong, name)
	t.s.add("--" + name + fault + t.s.From("--"+name))
	target.SetZero()
	if !ctx.Value.HasDefault {
		return nil
	}
	return t.mapper.Decode(ctx.WithScanner(kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: ctx.Value.Default})), target)
}

// read reads the value of a flag into target. read returns a text that says what is wrong, to
// put behind the name of the flag, or the empty text. The text does not repeat the value, which
// can be a secret.
func (t tolerant) read(ctx *kong.DecodeContext, target reflect.Value) (fault string) {
	switch next := ctx.Scan.Peek(); {
	case ctx.Value.IsBool() || next.IsValue():
	case next.IsEOL():
		return ": the value is missing"
	default:
		return ": the value is missing; if the value begins with -, such as an id, write --" + ctx.Value.Name + "=VALUE"
	}
	if err := t.mapper.Decode(ctx, target); err != nil {
		return ": " + withoutValue(err.Error())
	}
	if ctx.Value.Enum == "" || slices.Contains(ctx.Value.EnumSlice(), fmt.Sprint(target)) {
		return ""
	}
	var allowed []string
	for _, one := range ctx.Value.EnumSlice() {
		allowed = append(allowed, strconv.Quote(one))
	}
	return " must be one of " + strings.Join(allowed, ",")
}

// durations reads the value of a flag of type [time.Duration]. Beside the units of
// [time.ParseDuration], durations accepts days, as in 30d and 1d12h.
func durations(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("duration", &text); err != nil {
		return err
	}
	d, err := parseDuration(text)
	if err != nil {
		return errors.New("expected a duration such as 90s, 12h or 30d")
	}
	target.Set(reflect.ValueOf(d))
	return nil
}

// parseDuration parses a duration as [time.ParseDuration] does, and accepts whole days of 24 hours
// before the other units, as in 1d12h.
func parseDuration(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	digits, rest, found := strings.Cut(text, "d")
	if !found {
		return time.ParseDuration(text)
	}
	days, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || days > math.MaxInt64/uint64(day) {
		return 0, strconv.ErrRange
	}
	d := time.Duration(days) * day
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 || d+more < 0 {
		return 0, strconv.ErrRange
	}
	return d + more, nil
}
