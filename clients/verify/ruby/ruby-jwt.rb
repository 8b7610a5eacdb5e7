require 'jwt'

require_relative 'lines'

keys = ->(options) { jwks(fresh: options[:kid_not_found] || options[:invalidate]) }
rules = { algorithms: %w[EdDSA ED25519 ES256 RS256], jwks: keys, iss: ISSUER, verify_iss: true, aud: AUDIENCE, verify_aud: true,
          required_claims: ['exp'] }

answer { |token| JWT.decode(token, nil, true, rules).first }
