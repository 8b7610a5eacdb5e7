-- +goose Up
-- schema_floor stays: an earlier program leaves the number of a record at 0, so AuditService/WatchEvents leaves the record out.
--
-- The order in which AuditService/WatchEvents sends the records (rows_auditorder.go). A record gets
-- another number with each change of the count. Records of before have the number 0.
ALTER TABLE audit ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
CREATE INDEX audit_seq ON audit (seq, id);
CREATE INDEX audit_cli ON audit (seq, id) WHERE source = 'cli';

-- A mark: every record with a number up to seq is written, and no other record gets such a
-- number. Time in microseconds since 1970.
CREATE TABLE audit_marks (
    seq BIGINT PRIMARY KEY,
    tag BIGINT NOT NULL, -- random: a restored database lacks the marks of the lost time
    at  BIGINT NOT NULL,
    xid BIGINT NOT NULL  -- PostgreSQL: the mark counts when the transactions up to this one have ended; else 0
);

-- +goose Down
DROP TABLE audit_marks;
DROP INDEX audit_cli;
DROP INDEX audit_seq;
ALTER TABLE audit DROP COLUMN seq;
