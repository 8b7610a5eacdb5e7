import jwks from 'jwks-rsa'
import passport from 'passport'
import { ExtractJwt, Strategy } from 'passport-jwt'

import { answer, audience, issuer, jwksUri } from './lines.mjs'

passport.use(new Strategy({
  jwtFromRequest: ExtractJwt.fromAuthHeaderAsBearerToken(),
  secretOrKeyProvider: jwks.passportJwtSecret({ jwksUri, rateLimit: true }),
  issuer, audience, algorithms: ['EdDSA', 'ES256', 'RS256'],
}, (claims, done) => done(null, claims)))

// The request stands in for that of a web server.
await answer((token) => new Promise((resolve, reject) => {
  const request = { headers: { authorization: `Bearer ${token}` } }
  passport.authenticate('jwt', { session: false }, (error, claims, info) => {
    if (claims) resolve(claims)
    else reject(error ?? info)
  })(request, {}, reject)
}))
