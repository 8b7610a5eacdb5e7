package audit_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/watchword-auth/watchword/internal/audit"
)

// A filter can name every type of the constants in audit.go.
func TestEveryTypeIsKnown(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "audit.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != "Type" || len(spec.Values) != 1 {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := audit.ParseType(text); err != nil || string(got) != text {
			t.Errorf("%q: %v", text, err)
		}
		found++
		return true
	})
	if found < 15 {
		t.Errorf("audit.go has %d types", found)
	}
	for _, name := range []string{"", "Login", "login ", "user.create"} {
		if _, err := audit.ParseType(name); err == nil {
			t.Errorf("%q is a type", name)
		}
	}
}
