import { auth } from 'express-oauth2-jwt-bearer'

import { answer, audience, issuer } from './lines.mjs'

const guard = auth({ issuerBaseURL: issuer, audience, strict: true, clockTolerance: 0 })

// The request stands in for that of Express.
await answer((token) => new Promise((resolve, reject) => {
  const headers = { host: 'localhost', authorization: `Bearer ${token}` }
  const request = {
    method: 'GET', protocol: 'http', originalUrl: '/', headers, query: {},
    get: (name) => headers[name.toLowerCase()], is: () => false,
  }
  guard(request, {}, (error) => (error ? reject(error) : resolve(request.auth.payload)))
}))
