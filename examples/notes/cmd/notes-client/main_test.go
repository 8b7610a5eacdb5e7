package main

import (
	"context"
	"strings"
	"testing"
)

// The client refuses before it reads the password.
func TestNoPasswordOverPlaintextToAnotherMachine(t *testing.T) {
	const here = "127.0.0.1:1"
	for _, c := range []struct {
		config
		refused string
	}{
		{config{addr: here, authAddr: "192.0.2.7:50051"}, "--auth-addr"},
		{config{addr: here, authAddr: "auth.example:50051"}, "--auth-addr"},
		{config{addr: here, authAddr: "0.0.0.0:50051"}, "--auth-addr"},
		{config{addr: here, authAddr: "localhost.example:50051"}, "--auth-addr"},
		{config{addr: here, authAddr: "127.0.0.1.example:50051"}, "--auth-addr"},
		{config{addr: here, authAddr: "50051"}, "--auth-addr"},
		{config{addr: "192.0.2.7:50061", authAddr: here}, "--addr"},
		{config{addr: "192.0.2.7:50061", authAddr: here, caFile: "ca.pem"}, "--addr"},
		{config{addr: "notes.example:50061", authAddr: "auth.example:50051", insecure: true}, ""},
		{config{addr: here, authAddr: "auth.example:50051", caFile: "ca.pem"}, ""},
		{config{addr: "[::1]:50061", authAddr: "localhost:50051"}, ""},
		{config{addr: "unix:/run/notes.sock", authAddr: "127.9.9.9:50051"}, ""},
	} {
		err := c.keepPrivate()
		if (err == nil) != (c.refused == "") || err != nil && !strings.HasPrefix(err.Error(), c.refused+" ") {
			t.Errorf("%+v: %v, want a refusal of %q", c.config, err, c.refused)
		}
		c.username = "alice"
		if c.refused != "" {
			if err := run(context.Background(), c.config); err == nil || !strings.HasPrefix(err.Error(), c.refused+" ") {
				t.Errorf("%+v: run: %v", c.config, err)
			}
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("ren\u00e9\x1b[2J\n\u009b\u202e."); got != "ren\u00e9?[2J???." {
		t.Errorf("%q", got)
	}
}
