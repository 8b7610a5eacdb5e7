package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// issuerCmd holds the commands about trusted issuers.
type issuerCmd struct {
	Add    issuerAddCmd    `cmd:"" help:"Trust an issuer: service accounts may be bound to its tokens."`
	List   issuerListCmd   `cmd:"" help:"List trusted issuers."`
	Show   issuerShowCmd   `cmd:"" help:"Show a trusted issuer, and the keys that the server has of it."`
	Set    issuerSetCmd    `cmd:"" help:"Change the keys of a trusted issuer, or what is accepted of it."`
	Remove issuerRemoveCmd `cmd:"" help:"Remove a trusted issuer and its bindings, and revoke the access tokens of the bound service accounts."`
}

// namedIssuer holds the flags and the argument of a command about one trusted issuer.
type namedIssuer struct {
	api
	Name string `arg:"" help:"Name of the trusted issuer: lower-case letters, digits and hyphens."`
}

// do connects to the API, and calls the function do with a client of FederationService. If no
// trusted issuer has the name, the text of the error contains the name.
func (n *namedIssuer) do(ctx context.Context, t Terminal, do func(context.Context, watchwordv1.FederationServiceClient) error) error {
	return n.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		return aboutIssuer(do(ctx, watchwordv1.NewFederationServiceClient(conn)), n.Name)
	})
}

func aboutIssuer(err error, name string) error {
	if refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_ISSUER_NOT_FOUND {
		return about{err, strings.ToValidUTF8(name, "")}
	}
	return err
}

// keySource holds the flags that say from where the server gets the keys of a trusted issuer.
// The flag --issuer-ca-file names the CA for fetching the keys, since --ca-file is for the
// connection to a running server.
type keySource struct {
	JwksFile     string        `type:"path" xor:"keys" placeholder:"FILE" help:"File with the public keys, a JSON Web Key Set."`
	JwksURI      string        `name:"jwks-uri" xor:"keys" placeholder:"URL" help:"The https URL of the public keys, a JSON Web Key Set."`
	Discovery    bool          `xor:"keys" help:"The metadata of the issuer name the URL of the keys (OpenID Connect Discovery, RFC 8414)."`
	IssuerCAFile string        `name:"issuer-ca-file" type:"path" placeholder:"FILE" help:"File with the certificates of the CAs for the server of the keys, in PEM. Default: the CAs of the system."`
	MaxLifetime  time.Duration `placeholder:"24h" help:"The longest lifetime of a token that is accepted. Default: 24h."`
	AllowPrivate bool          `help:"Let the keys be fetched from a private, loopback or link-local address."`
}

// read sets the fields of a trusted issuer that the flags name, and returns the names of these
// fields. read also checks the files that the flags name: a private key in a file must not
// leave this machine.
func (k *keySource) read(i *watchwordv1.Issuer) (fields []string, err error) {
	switch {
	case k.JwksFile != "":
		text, err := readShort(k.JwksFile)
		if err == nil {
			err = federation.CheckDocument(text)
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("--jwks-file: %w", err)}
		}
		i.Keys, fields = &watchwordv1.Issuer_Jwks{Jwks: text}, append(fields, "jwks")
	case k.JwksURI != "":
		i.Keys, fields = &watchwordv1.Issuer_JwksUri{JwksUri: k.JwksURI}, append(fields, "jwks_uri")
	case k.Discovery:
		i.Keys, fields = &watchwordv1.Issuer_Discovery{Discovery: true}, append(fields, "discovery")
	}
	if k.IssuerCAFile != "" {
		text, err := readShort(k.IssuerCAFile)
		if err == nil {
			text, err = federation.ParseCA(text)
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("--issuer-ca-file: %w", err)}
		}
		i.CaPem, fields = text, append(fields, "ca_pem")
	}
	if k.MaxLifetime != 0 {
		i.MaxLifetime, fields = durationpb.New(k.MaxLifetime), append(fields, "max_lifetime")
	}
	if k.AllowPrivate {
		i.AllowPrivate, fields = true, append(fields, "allow_private")
	}
	return fields, nil
}

// readShort reads a file that the command sends in a request, and at most a megabyte of the
// file.
func readShort(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err == nil && len(data) == 0 {
		err = errors.New("the file is empty")
	}
	return string(data), err
}

type issuerAddCmd struct {
	namedIssuer
	Issuer string `env:"-" required:"" placeholder:"URL" help:"The claim iss of the issuer's tokens, byte for byte."`
	keySource
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *issuerAddCmd) Help() string {
	return `Give one of --jwks-file, --jwks-uri and --discovery. Then bind service accounts to tokens of
the issuer, by watchword service bind.`
}

// Validate returns an error if no flag names the source of the keys. The parser kong calls
// Validate, and the exit status of an error is 2.
func (c *issuerAddCmd) Validate() error {
	if c.JwksFile == "" && c.JwksURI == "" && !c.Discovery {
		return errors.New("say from where the public keys come: give one of --jwks-file, --jwks-uri and --discovery")
	}
	return nil
}

// Run makes a trusted issuer. Run prints nothing if standard output is no terminal, as in a
// script.
func (c *issuerAddCmd) Run(ctx context.Context, t Terminal) error {
	i := &watchwordv1.Issuer{Name: c.Name, Issuer: c.Issuer}
	if _, err := c.read(i); err != nil {
		return err
	}
	return c.do(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient) error {
		_, err := service.CreateIssuer(ctx, &watchwordv1.CreateIssuerRequest{Issuer: i})
		if err == nil && t.outIsTerminal() {
			fmt.Fprintf(t.Out, "tokens of %s are accepted for bound service accounts: see watchword service bind\n", escape(c.Issuer, ""))
		}
		return err
	})
}

type issuerListCmd struct {
	api
	asJSON
}

// Run prints all trusted issuers (other systems with tokens that services can sign in with).
// Run reads one page of the list in each call.
func (c *issuerListCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, t, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		service := watchwordv1.NewFederationServiceClient(conn)
		each := func(show func(*watchwordv1.Issuer) error) error {
			return pages(func(token string) (string, error) {
				resp, err := service.ListIssuers(ctx, &watchwordv1.ListIssuersRequest{PageSize: pageSize, PageToken: token})
				for _, i := range resp.GetIssuers() {
					if err := show(i); err != nil {
						return "", err
					}
				}
				return resp.GetNextPageToken(), err
			})
		}
		return list(t, c.asJSON, "NAME\tISSUER\tKEYS\tLONGEST LIFETIME\tCREATED", each, func(i *watchwordv1.Issuer) []string {
			return []string{i.GetName(), i.GetIssuer(), keysOf(i), i.GetMaxLifetime().AsDuration().String(), moment(i.GetCreatedAt())}
		})
	})
}

// keysOf returns a text that says from where the server gets the keys of a trusted issuer.
func keysOf(i *watchwordv1.Issuer) string {
	switch {
	case i.GetJwks() != "":
		return "document"
	case i.GetDiscovery():
		return "discovered"
	}
	return i.GetJwksUri()
}

type issuerShowCmd struct {
	namedIssuer
	asJSON
}

// Run prints a trusted issuer, a field in each line. With --json, Run also prints the
// documents: the keys and the CA certificates.
func (c *issuerShowCmd) Run(ctx context.Context, t Terminal) error {
	return c.do(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient) error {
		resp, err := service.GetIssuer(ctx, &watchwordv1.GetIssuerRequest{Name: c.Name})
		if err != nil {
			return err
		}
		i, ca, fetched := resp.GetIssuer(), "of the system", resp.GetIssuer().GetFetched()
		if c.JSON {
			return t.printLine(i)
		}
		if i.GetCaPem() != "" {
			ca = fmt.Sprintf("%d of its own", strings.Count(i.GetCaPem(), "-----BEGIN"))
		}
		return table(t.Out, "", func(add addRow) error {
			err := errors.Join(add("name", i.GetName()), add("issuer", i.GetIssuer()), add("keys", keysOf(i)), add("CAs", ca),
				add("longest lifetime", i.GetMaxLifetime().AsDuration().String()), add("private addresses", yesNo(i.GetAllowPrivate())))
			if fetched != nil {
				err = errors.Join(err, add("kids", cmp.Or(strings.Join(fetched.GetKids(), ","), "-")), add("fetched", moment(fetched.GetFetchedAt())),
					add("error", cmp.Or(fetched.GetError(), "-")))
			}
			return errors.Join(err, add("created", moment(i.GetCreatedAt())), add("updated", moment(i.GetUpdatedAt())))
		})
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

type issuerSetCmd struct {
	namedIssuer
	keySource
	NoIssuerCA bool `name:"no-issuer-ca" help:"Use the CAs of the system for the server of the keys."`
	NoPrivate  bool `help:"Fetch the keys from public addresses alone."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *issuerSetCmd) Help() string {
	return `Other keys, another URL and another CA revoke the access tokens of every bound service
account: an account gets new ones with a token that the changed issuer has signed.`
}

// Run changes the settings of a trusted issuer that the flags name.
func (c *issuerSetCmd) Run(ctx context.Context, t Terminal) error {
	i := &watchwordv1.Issuer{Name: c.Name}
	fields, err := c.read(i)
	if err != nil {
		return err
	}
	for _, without := range []struct {
		is, given   bool
		field, text string
	}{
		{c.NoIssuerCA, c.IssuerCAFile != "", "ca_pem", "--no-issuer-ca and --issuer-ca-file contradict each other"},
		{c.NoPrivate, c.AllowPrivate, "allow_private", "--no-private and --allow-private contradict each other"},
	} {
		switch {
		case without.is && without.given:
			return usageError{errors.New(without.text)}
		case without.is:
			fields = append(fields, without.field)
		}
	}
	if len(fields) == 0 {
		return usageError{errors.New("give what changes, such as --jwks-file or --max-lifetime")}
	}
	return c.do(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient) error {
		_, err := service.UpdateIssuer(ctx, &watchwordv1.UpdateIssuerRequest{Issuer: i, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields}})
		return err
	})
}

type issuerRemoveCmd struct{ namedIssuer }

// Run removes a trusted issuer and its bindings.
func (c *issuerRemoveCmd) Run(ctx context.Context, t Terminal) error {
	return c.do(ctx, t, func(ctx context.Context, service watchwordv1.FederationServiceClient) error {
		_, err := service.DeleteIssuer(ctx, &watchwordv1.DeleteIssuerRequest{Name: c.Name})
		return err
	})
}
