import { createRemoteJWKSet, jwtVerify } from 'jose'

import { answer, audience, issuer, jwksUri } from './lines.mjs'

const keys = createRemoteJWKSet(new URL(jwksUri))

await answer(async (token) => {
  const { payload } = await jwtVerify(token, keys, {
    issuer, audience, typ: 'at+jwt', algorithms: ['EdDSA', 'ES256', 'RS256'],
  })
  return payload
})
