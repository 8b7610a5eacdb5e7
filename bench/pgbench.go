package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// pgbench reports how many updates a second PostgreSQL's own benchmark makes with a
// number of clients, each on a connection and a row of its own: the figure of the
// database alone, in C and without gRPC.
func (b *bench) pgbench(postgres *pgtest.Durable, c *crowd, clients int) error {
	const row = `'pgbench-' || %s`
	if _, err := c.db.Exec(context.Background(), `INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object('id', `+
		fmt.Sprintf(row, "10000000 + g")+`))).* FROM sessions s, generate_series(0, $2 - 1) g WHERE s.id = $1
		ON CONFLICT DO NOTHING`, sessionID(0), clients); err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "watchword-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	script := filepath.Join(folder, "update.sql")
	text := `\set row 10000000 + :client_id` + "\n" + fmt.Sprintf(bareUpdate, "1700000000000000", fmt.Sprintf(row, ":row")) + ";\n"
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		return err
	}
	var all []float64
	for range b.of(1, 5) {
		rate, err := runPgbench(postgres.Program("pgbench"), c.uri, script, clients, time.Duration(b.of(2, 3))*time.Second)
		if err != nil {
			return err
		}
		all = append(all, rate)
	}
	b.report(fmt.Sprintf("postgres-refresh/%d-callers/pgbench", clients), median(all), "updates/s", limit{})
	return nil
}

var pgbenchRate = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

func runPgbench(program, uri, script string, clients int, d time.Duration) (float64, error) {
	database, err := url.Parse(uri)
	if err != nil {
		return 0, err
	}
	password, _ := database.User.Password()
	command := exec.Command(program, "-n", "-M", "prepared", "-c", fmt.Sprint(clients), "-j", fmt.Sprint(min(cores, clients)),
		"-T", fmt.Sprint(int(d.Seconds())), "-f", script, "-h", database.Hostname(), "-p", database.Port(), "-U", database.User.Username(), database.Path[1:])
	command.Env = append(os.Environ(), "PGPASSWORD="+password)
	out, err := command.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	found := pgbenchRate.FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("pgbench says no rate:\n%s", out)
	}
	return strconv.ParseFloat(string(found[1]), 64)
}
