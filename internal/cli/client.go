package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// callTimeout bounds a command for a running server, the connecting included: a command
// in a script must end. A login may wait some seconds for the password hashes of
// others.
const callTimeout = 30 * time.Second

// remote holds the flags of the commands that call a running server.
type remote struct {
	Addr      string `default:"127.0.0.1:50051" help:"Address of the server's gRPC API."`
	CAFile    string `name:"ca-file" type:"path" help:"CA of the server's certificate, PEM. Default: the system's CAs."`
	Plaintext bool   `help:"Connect without TLS."`
}

// with makes a connection to the server, and calls do within callTimeout. TLS is the
// default: only --plaintext sends a secret in the clear.
func (r remote) with(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	if r.Plaintext && r.CAFile != "" {
		return usageError{errors.New("--plaintext and --ca-file contradict each other")}
	}
	creds := credentials.NewTLS(nil)
	if r.Plaintext {
		creds = insecure.NewCredentials()
	} else if r.CAFile != "" {
		var err error
		if creds, err = credentials.NewClientTLSFromFile(r.CAFile, ""); err != nil {
			return fmt.Errorf("--ca-file: %w", err)
		}
	}
	conn, err := grpc.NewClient(r.Addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		return usageError{fmt.Errorf("--addr: %w", err)}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return errors.Join(do(ctx, conn), conn.Close())
}

type loginCmd struct {
	remote
	Name          string   `arg:"" help:"Username."`
	Audience      []string `help:"A service for the tokens; repeat the flag for more. Default: all services."`
	PasswordStdin bool     `help:"Read the password from standard input."`
}

// Run logs in and prints the tokens as JSON, which `watchword verify` and `watchword
// logout` read from standard input.
func (c *loginCmd) Run(ctx context.Context, t Terminal) error {
	pw, err := t.readPassword(c.PasswordStdin, false)
	if err != nil {
		return err
	}
	return c.with(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := watchwordv1.NewAuthServiceClient(conn).Login(ctx, &watchwordv1.LoginRequest{
			Username: c.Name, Password: pw, Audience: c.Audience,
		})
		if err != nil {
			return err
		}
		return t.printJSON(resp.GetTokens())
	})
}

type verifyCmd struct {
	remote
	Audience string `help:"The service that must be in the token. Default: any."`
}

// Run prints what a valid access token says about its user. For any other token the
// exit status is 1, and the error begins with the reason.
func (c *verifyCmd) Run(ctx context.Context, t Terminal) error {
	token, err := t.readToken((*watchwordv1.TokenPair).GetAccessToken)
	if err != nil {
		return err
	}
	return c.with(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := watchwordv1.NewAuthServiceClient(conn).Verify(ctx, &watchwordv1.VerifyRequest{
			AccessToken: token, Audience: c.Audience,
		})
		if err != nil {
			return err
		}
		return t.printJSON(resp.GetPrincipal())
	})
}

type logoutCmd struct{ remote }

// Run ends the session of a refresh token, and prints nothing.
func (c *logoutCmd) Run(ctx context.Context, t Terminal) error {
	token, err := t.readToken((*watchwordv1.TokenPair).GetRefreshToken)
	if err != nil {
		return err
	}
	return c.with(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := watchwordv1.NewAuthServiceClient(conn).Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: token})
		return err
	})
}

type healthcheckCmd struct{ remote }

// Run exits with status 0 if the server serves, and 1 otherwise: for a container, which
// has no other program to ask.
func (c *healthcheckCmd) Run(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		if err == nil && resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			err = fmt.Errorf("the server is %s", resp.GetStatus())
		}
		return err
	})
}

// readToken reads a token from standard input: the bare text, or the JSON that
// `watchword login` prints. of returns the wanted token of the two in the JSON.
func (t Terminal) readToken(of func(*watchwordv1.TokenPair) string) (string, error) {
	text, err := t.readAll()
	if err != nil || !strings.HasPrefix(text, "{") {
		return text, err
	}
	pair := &watchwordv1.TokenPair{}
	if protojson.Unmarshal([]byte(text), pair) != nil || of(pair) == "" {
		return "", usageError{errors.New("standard input is JSON, but not the output of login")}
	}
	return of(pair), nil
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
