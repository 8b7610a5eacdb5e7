package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// firstChecked is the first migration that must follow the rules of docs/migrations.md. The
// schema of the migrations before is the one that the earliest supported program has.
const firstChecked = 13

// TestMigrationsKeepEarlierPrograms reads each migration. A migration only adds, or raises
// schema_floor, or says why earlier programs can work with the schema all the same.
func TestMigrationsKeepEarlierPrograms(t *testing.T) {
	files, err := filepath.Glob("migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		number, _, _ := strings.Cut(filepath.Base(file), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if version < firstChecked {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkMigration(string(text), version); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

var (
	comment    = regexp.MustCompile(`--[^\n]*`)
	created    = regexp.MustCompile(`^CREATE TABLE (\w+)`)
	indexed    = regexp.MustCompile(`^CREATE INDEX `)
	unique     = regexp.MustCompile(`^CREATE UNIQUE INDEX .* ON (\w+)`)
	inserted   = regexp.MustCompile(`^INSERT INTO (\w+)`)
	added      = regexp.MustCompile(`^ALTER TABLE \w+ ADD COLUMN [^,]*$`)
	restricted = regexp.MustCompile(`\b(UNIQUE|CHECK|REFERENCES|PRIMARY KEY)\b`)
	raised     = regexp.MustCompile(`UPDATE settings SET value = '(\d+)' WHERE name = 'schema_floor'`)
	named      = regexp.MustCompile(`INSERT INTO settings \(name, value\) VALUES \('schema_floor_release', 'v\d+\.\d+\.\d+'\) ON CONFLICT \(name\) DO UPDATE SET value = excluded\.value`)
	reason     = regexp.MustCompile(`(?m)^-- schema_floor (stays|rises): .+`)
)

// checkMigration returns an error if the text of a migration breaks a rule.
func checkMigration(text string, version int64) error {
	up, _, _ := strings.Cut(text, "-- +goose Down")
	why := reason.FindStringSubmatch(up)
	sql := strings.Join(strings.Fields(comment.ReplaceAllString(up, "")), " ")
	if floor := raised.FindStringSubmatch(sql); floor != nil {
		lowest, err := strconv.ParseInt(floor[1], 10, 64)
		switch {
		case err != nil || lowest > version:
			return fmt.Errorf("schema_floor is %s, above the migration itself", floor[1])
		case why == nil || why[1] != "rises":
			return fmt.Errorf("schema_floor is raised without a comment `-- schema_floor rises: REASON`")
		case !named.MatchString(sql):
			return fmt.Errorf("schema_floor is raised without the setting schema_floor_release")
		}
		return nil
	}
	if why != nil && why[1] == "stays" {
		return nil
	}
	own := map[string]bool{"settings": true}
	for statement := range strings.SplitSeq(sql, ";") {
		statement = strings.TrimSpace(statement)
		if table := created.FindStringSubmatch(statement); table != nil {
			own[table[1]] = true
			continue
		}
		if m := unique.FindStringSubmatch(statement); m != nil && own[m[1]] {
			continue
		}
		if m := inserted.FindStringSubmatch(statement); m != nil && own[m[1]] {
			continue
		}
		nullable := !strings.Contains(statement, "NOT NULL") || strings.Contains(statement, "DEFAULT")
		if statement == "" || indexed.MatchString(statement) || added.MatchString(statement) && nullable && !restricted.MatchString(statement) {
			continue
		}
		return fmt.Errorf("%q may break an earlier program: raise schema_floor, or say `-- schema_floor stays: REASON`", statement)
	}
	return nil
}

func TestCheckMigration(t *testing.T) {
	const release = "INSERT INTO settings (name, value) VALUES ('schema_floor_release', 'v1.2.0')\n\tON CONFLICT (name) DO UPDATE SET value = excluded.value;\n"
	const floor = "UPDATE settings SET value = '14' WHERE name = 'schema_floor';\n"
	for text, ok := range map[string]bool{
		"CREATE TABLE a (b TEXT);\nCREATE UNIQUE INDEX c ON a (b);\nINSERT INTO a (b) VALUES ('');": true,
		"CREATE INDEX a ON users (id);":                                                        true,
		"ALTER TABLE users ADD COLUMN a BIGINT; -- a comment; with DROP TABLE":                 true,
		"ALTER TABLE users ADD COLUMN a BIGINT NOT NULL DEFAULT 0;":                            true,
		"CREATE TABLE a (b TEXT);\n-- +goose Down\nDROP TABLE a;":                              true,
		"ALTER TABLE users ADD COLUMN a BIGINT NOT NULL;":                                      false,
		"ALTER TABLE users ADD COLUMN a TEXT UNIQUE;":                                          false,
		"ALTER TABLE users DROP COLUMN name;":                                                  false,
		"ALTER TABLE users RENAME COLUMN name TO called;":                                      false,
		"CREATE UNIQUE INDEX a ON users (name);":                                               false,
		"DROP TABLE throttle;":                                                                 false,
		"DELETE FROM throttle;":                                                                false,
		"UPDATE users SET name = '';":                                                          false,
		"-- schema_floor stays: only one row\nDELETE FROM throttle;":                           true,
		floor + release + "DROP TABLE a;":                                                      false,
		"-- schema_floor rises: a is gone\n" + floor + "DROP TABLE a;":                         false,
		"-- schema_floor rises: a is gone\n" + floor + release + "DROP TABLE a;":               true,
		"-- schema_floor rises: a is gone\n" + strings.Replace(floor, "14", "16", 1) + release: false,
	} {
		if err := checkMigration("-- +goose Up\n"+text, 15); (err == nil) != ok {
			t.Errorf("%q: %v, want a rule that holds: %v", text, err, ok)
		}
	}
}

// The refusal of a schema that excludes the program names the version of Watchword that the
// schema needs.
func TestTheRefusalNamesTheRelease(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		s := storetest.Open(t, uri)
		store.ForgeSchemaVersion(t, s, "99999")
		if err := s.Write(t.Context(), set("schema_floor_release", "v1.2.3")); err != nil {
			t.Fatal(err)
		}
		_, opening := store.Open(t.Context(), uri)
		for what, err := range map[string]error{"Open": opening, "CheckSchema": s.CheckSchema(t.Context())} {
			if err == nil || !strings.HasSuffix(err.Error(), `which cannot work with it ("v1.2.3" is the oldest that can)`) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}
