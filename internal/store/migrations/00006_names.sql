-- +goose Up
-- The usernames at the time of the record; empty in older records.
ALTER TABLE audit ADD COLUMN actor_name TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN user_name TEXT NOT NULL DEFAULT '';

-- Every name that a user has or had, to find the records of deleted and renamed users.
-- A user that only older programs have written may be missing.
CREATE TABLE usernames (
    username TEXT NOT NULL,
    user_id  TEXT NOT NULL,
    PRIMARY KEY (username, user_id)
);
INSERT INTO usernames (username, user_id) SELECT username, id FROM users;

-- +goose Down
DROP TABLE usernames;
ALTER TABLE audit DROP COLUMN user_name;
ALTER TABLE audit DROP COLUMN actor_name;
