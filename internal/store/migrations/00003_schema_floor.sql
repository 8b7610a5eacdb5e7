-- +goose Up
-- The lowest schema version whose programs can work with the schema as it is. A
-- migration that takes away what they need raises it (docs/migrations.md).
INSERT INTO settings (name, value) VALUES ('schema_floor', '3');

-- +goose Down
DELETE FROM settings WHERE name = 'schema_floor';
