package store_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// plans returns SQLite's plan of every statement that the connections of a store have
// prepared.
func plans(t *testing.T, s *store.Store) map[string]string {
	t.Helper()
	plans := map[string]string{}
	explain := func(tx *store.Tx) error {
		for _, sql := range store.Prepared(tx) {
			if plans[sql] == "" && regexp.MustCompile(`^(SELECT|INSERT|UPDATE|DELETE)`).MatchString(sql) {
				plan, err := store.QueryPlan(tx, sql)
				if err != nil {
					return err
				}
				plans[sql] = plan
			}
		}
		return nil
	}
	err := s.Write(t.Context(), explain)
	for range store.Readers(s) { // the readers take turns
		if err == nil {
			err = s.Read(t.Context(), explain)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return plans
}

// scansOrSorts matches a plan that reads all of a table that grows with use, or sorts what
// it has found there.
var scansOrSorts = regexp.MustCompile(`SCAN (users|sessions|events|audit|throttle|bindings|s|u)\b|SEARCH (users|sessions|events|audit|bindings|s|u) [^\n]*\nUSE TEMP B-TREE`)

// Every list finds the rows of its page by an index that has them in order, and no
// statement reads all of a table that grows with use.
func TestEveryPlanOfSQLiteIsASearch(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	storetest.TouchEverything(t, s, 1)
	all := plans(t, s)
	if len(all) < 30 {
		t.Errorf("only %d statements were planned", len(all))
	}
	text := ""
	for sql, plan := range all {
		text += plan
		if scansOrSorts.MatchString(plan) {
			t.Errorf("%s\n%s", sql, plan)
		}
	}
	for _, search := range []string{
		"sessions USING INDEX sessions_live (user_id=? AND born_ver>? AND (born_ver,created_at,id)<(?,?,?))",
		"sessions USING INDEX sessions_live (user_id=? AND born_ver>?)",
		"sessions USING INDEX sessions_ended (user_id=? AND (born_ver,created_at,id)>(?,?,?))",
		"users USING INDEX users_live (id>?)",
		"users USING INDEX users_services (id>?)",
		"audit USING INDEX sqlite_autoindex_audit_1 (id>? AND id<?)",
		"audit USING INDEX audit_type ((type,id)>(?,?) AND (type,id)<(?,?))",
		"audit USING INDEX audit_user_id ((user_id,id)>(?,?) AND (user_id,id)<(?,?))",
		"audit USING INDEX audit_actor_id ((actor_id,id)>(?,?) AND (actor_id,id)<(?,?))",
		"audit USING INDEX audit_session_id ((session_id,id)>(?,?) AND (session_id,id)<(?,?))",
	} {
		if !strings.Contains(text, search) {
			t.Errorf("no statement is a SEARCH %s", search)
		}
	}
}
