package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// asJSON holds the flag --json of every command that lists or shows something.
type asJSON struct {
	JSON bool `name:"json" help:"Print one JSON object in each line."`
}

// list prints a list: one JSON object in each line, or a table with a header and a row for
// each message. each calls its argument for each message.
func list[M proto.Message](t Terminal, f asJSON, header string, each func(func(M) error) error, row func(M) []string) error {
	if f.JSON {
		return each(func(m M) error { return t.printLine(m) })
	}
	return table(t.Out, header, func(add addRow) error {
		return each(func(m M) error { return add(row(m)...) })
	})
}

// addRow adds a row to a table. A line break or a tab in a cell is escaped, so that a cell
// makes no second cell or row.
type addRow func(cells ...string) error

// table prints rows in columns, below a header unless the header is empty. rows calls its
// argument for each row. The columns are aligned within each 500 rows: table keeps these
// rows alone in memory. If rows fails before the first row, table prints nothing.
func table(out io.Writer, header string, rows func(addRow) error) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	begin := func() {
		if header != "" {
			fmt.Fprintln(w, header)
		}
		header = ""
	}
	const together = 500
	count := 0
	add := func(cells ...string) error {
		begin()
		for i, cell := range cells {
			cells[i] = escape(cell, "")
		}
		_, err := fmt.Fprintln(w, strings.Join(cells, "\t"))
		if count++; err == nil && count%together == 0 {
			err = w.Flush()
		}
		return err
	}
	err := rows(add)
	if err == nil {
		begin()
	}
	return errors.Join(err, w.Flush())
}

// moment returns a time in the form of RFC 3339 for a cell of a table, and "-" for a time that
// is not set.
func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Format(time.RFC3339)
}

// nameAndID returns a user for a table. Several users may have had the same name, so the id
// follows the name. The operator at the command line has a name and no id.
func nameAndID(name, id string) string {
	if name != "" && id != "" {
		return name + "/" + id
	}
	return cmp.Or(name, id, "-")
}

// fieldNames makes JSON with the names of the proto files, and with every field that is not
// a message, also a field with the zero value.
var fieldNames = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// printLine prints a message as JSON in one line.
func (t Terminal) printLine(m proto.Message) error {
	data, err := fieldNames.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, data); err != nil { // protojson varies its spaces from build to build
		return err
	}
	_, err = fmt.Fprintln(t.Out, out.String())
	return err
}

// printJSON prints a message as indented JSON, with the field names of the proto files.
func (t Terminal) printJSON(m proto.Message) error {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil { // protojson varies its spaces from build to build
		return err
	}
	_, err = fmt.Fprintln(t.Out, out.String())
	return err
}
