package store

import (
	"strconv"
	"time"
)

// The floor for versions is a setting: a number that only grows. The version in an access token
// ([User.TokenVersion]) is never below the floor, and a version that is raised is above the
// floor afterwards. After a database was restored, or a standby was promoted, the floor is
// raised above every version of the lost history. So verifiers accept new tokens, although
// verifiers know versions that the database has lost.

// versionFloor names the setting that holds the floor for versions.
const versionFloor = "version_floor"

// floorColumn is SQL for the floor for versions, as a column of a statement about a user.
const floorColumn = `COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE settings.name = '` + versionFloor + `'), 0)`

// FloorAndQuestion returns the floor for versions, and the time of the newest call of
// [Tx.AskReplicas]. Before the first start of a server, the floor is zero. Before the first
// call of AskReplicas, the time is the beginning of 1970. One statement reads floor and time,
// since every server reads both several times a second.
func (tx *Tx) FloorAndQuestion() (floor int64, asked time.Time, err error) {
	question := ""
	err = tx.queryRow(into(&floor, &question), `SELECT `+floorColumn+`, COALESCE((SELECT value FROM settings WHERE name = $1), '')`, watchersAsked)
	us, _ := strconv.ParseInt(question, 10, 64) // a damaged time must not hide the floor
	return floor, fromMicros(us), err
}

// HoldFloor returns the floor for versions, and locks the floor: a [Tx.RaiseFloor] of another
// transaction waits until this transaction ends. A transaction that raises the version of a
// user must call HoldFloor. Otherwise a refresh at the same time could mint a token with the
// user's earlier rights and a raised floor, and the user's new version would not be above the
// version in the token.
func (tx *Tx) HoldFloor() (int64, error) {
	value := "0"
	err := tx.fail(tx.run.query(into(&value), "SHARE OF settings", `SELECT value FROM settings WHERE name = $1`, versionFloor))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(value, 10, 64)
}

// RaiseFloor raises the floor for versions to least. If the floor is least or above,
// RaiseFloor changes nothing.
func (tx *Tx) RaiseFloor(least int64) error { return tx.raiseSetting(versionFloor, least) }

// raiseSetting raises a setting that holds a number, until the number is least or more.
func (tx *Tx) raiseSetting(name string, least int64) error {
	return tx.queueExec(`INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value
		WHERE CAST(settings.value AS BIGINT) < CAST(excluded.value AS BIGINT)`, name, strconv.FormatInt(least, 10))
}
