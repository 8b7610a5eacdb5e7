package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// The synchronous standby goes away, and then an operator withdraws a leaked key. The process of
// the operator is killed while the commit waits for the standby: nothing cancels the wait. Longer
// than ten seconds after the withdrawal, a service delegates a token of the leaked key, and another
// key signs the delegated token. When the standby is back, the withdrawal takes both tokens back.
func TestSlowAWithdrawalThatWaitsForTheStandby(t *testing.T) {
	slow(t)
	in := install(t, append([]string{"--jwks-max-age", "0s"}, chainAudiences...)...)
	wantExit(t, 0, run(t, in.command("migrate", "--finish")))
	in.follow(true)
	ch := newChain(t, in.replicate(t).now(), "http://auth.test", 2)
	leaked := kidOf(ch.alice.GetAccessToken())
	if _, err := watchwordv1.NewKeyServiceClient(ch.c.conn).RotateKey(bearer(callCtx(t), ch.admin), &watchwordv1.RotateKeyRequest{}); err != nil {
		t.Fatal(err)
	}

	in.standby.Kill()
	cmd := in.command("key", "revoke", leaked, "--master-key-file", in.masterKey)
	cmd.Env = append(cmd.Env, "PGAPPNAME=operator")
	revoke := start(t, cmd)
	conn, err := pgx.Connect(t.Context(), in.superuser())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	eventually(t, startTimeout, "the wait of the commit", func() error {
		var waits bool
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'operator' AND wait_event = 'SyncRep')`).Scan(&waits)
		if err == nil && !waits {
			err = errors.New("not yet")
		}
		return err
	})
	revoke.kill()
	time.Sleep(12 * time.Second) // the moment of the withdrawal is 10 to 11 seconds after its beginning

	between, err := ch.delegate(t, ch.links[0].own.GetAccessToken(), ch.alice.GetAccessToken(), "s1")
	if err != nil || kidOf(between) == leaked {
		t.Fatalf("a delegation while the withdrawal waits: %v", err)
	}
	wantOK(t, "before the withdrawal is visible", ch.links[1].ask(callCtx(t), between))
	in.standby.Restart()
	eventually(t, startTimeout, "the token of the leaked key", func() error {
		return checkRefusal(ch.links[0].ask(callCtx(t), ch.alice.GetAccessToken()), "TOKEN_INVALID")
	})
	took := eventually(t, startTimeout, "the delegated token", func() error {
		return checkRefusal(ch.links[1].ask(callCtx(t), between), "TOKEN_INVALID")
	})
	t.Logf("the delegated token was refused %v after the token of the leaked key", took)
}
