-- +goose Up
-- schema_floor stays: an earlier program numbers the records, too; only a changed count keeps the number.
--
-- 00015_audit_numbers_sqlite.sql describes the columns. A record gets its number after its
-- transaction has an id: CASE evaluates the condition first (rows_auditorder.go).
ALTER TABLE audit ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
CREATE SEQUENCE audit_numbers;
ALTER TABLE audit ALTER COLUMN seq SET DEFAULT CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval('audit_numbers') END;
CREATE INDEX audit_seq ON audit (seq, id);
CREATE INDEX audit_cli ON audit (seq, id) WHERE source = 'cli';

CREATE TABLE audit_marks (
    seq BIGINT PRIMARY KEY,
    tag BIGINT NOT NULL,
    at  BIGINT NOT NULL,
    xid BIGINT NOT NULL
);

-- +goose Down
DROP TABLE audit_marks;
DROP INDEX audit_cli;
DROP INDEX audit_seq;
ALTER TABLE audit DROP COLUMN seq;
DROP SEQUENCE audit_numbers;
