-- +goose Up
-- Trusted issuers, and the bindings that name a service account for a token of a trusted
-- issuer (internal/federation). Times are microseconds since 1970.
CREATE TABLE issuers (
    name          TEXT    PRIMARY KEY,
    issuer        TEXT    NOT NULL, -- the claim iss, byte for byte
    jwks          TEXT    NOT NULL, -- a JSON Web Key Set; of jwks, jwks_uri and discovery one is set
    jwks_uri      TEXT    NOT NULL,
    discovery     BOOLEAN NOT NULL,
    ca_pem        TEXT    NOT NULL, -- empty: the CAs of the system
    max_lifetime  BIGINT  NOT NULL, -- microseconds
    allow_private BOOLEAN NOT NULL,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL  -- each change of the row raises it
);
CREATE UNIQUE INDEX issuers_issuer ON issuers (issuer);

-- internal/federation removes the bindings of a removed issuer or account in the same
-- transaction. Foreign keys would bind the order in which a copy of the database fills and
-- renames the tables.
CREATE TABLE bindings (
    id         TEXT   PRIMARY KEY, -- 16 characters of base64url
    issuer     TEXT   NOT NULL,    -- the name of the issuer
    subject    TEXT   NOT NULL,    -- the claim sub, byte for byte
    claims     TEXT   NOT NULL,    -- a JSON array of {"path": [...], "value": ...}, in order of path
    user_id    TEXT   NOT NULL,    -- the service account
    created_at BIGINT NOT NULL
);
CREATE INDEX bindings_subject ON bindings (issuer, subject);
CREATE INDEX bindings_issuer ON bindings (issuer, id);
CREATE INDEX bindings_user_id ON bindings (user_id, id);

-- +goose Down
DROP TABLE bindings;
DROP TABLE issuers;
