-- +goose Up
-- What the replicas tell each other of their watchers (internal/roster). No decision of a
-- server depends on these rows. Times are microseconds since 1970.
CREATE TABLE replicas (
    id         BIGINT PRIMARY KEY, -- random for each server process
    address    TEXT   NOT NULL,    -- the name of the machine, and the address of the listener
    answered   BIGINT NOT NULL,    -- the newest question (setting watchers_asked) that the summary answers
    written_at BIGINT NOT NULL,
    summary    BYTEA  NOT NULL     -- JSON; internal/roster/summary.go describes the content
);

-- The names in the client certificates of watchers, and when a watcher last had the name.
CREATE TABLE watcher_certificates (
    certificate BYTEA  PRIMARY KEY, -- the name
    seen_at     BIGINT NOT NULL
);

-- +goose Down
DROP TABLE watcher_certificates;
DROP TABLE replicas;
