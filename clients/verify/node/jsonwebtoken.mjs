import jwt from 'jsonwebtoken'
import jwks from 'jwks-rsa'

import { answer, audience, issuer, jwksUri } from './lines.mjs'

const client = jwks({ jwksUri, rateLimit: true })
const key = (header, done) => client.getSigningKey(header.kid).then((found) => done(null, found.getPublicKey()), done)

// EdDSA is among the algorithms to show the error: jsonwebtoken has no EdDSA.
const options = { issuer, audience, algorithms: ['EdDSA', 'ES256', 'RS256'] }

await answer((token) => new Promise((resolve, reject) => {
  jwt.verify(token, key, options, (error, claims) => (error ? reject(error) : resolve(claims)))
}))
