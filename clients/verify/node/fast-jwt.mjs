// fast-jwt with a key that Node.js itself has made from the JWK: getPublicKey of get-jwks knows
// no EdDSA.

import { createPublicKey } from 'node:crypto'

import { createVerifier } from 'fast-jwt'
import buildGetJwks from 'get-jwks'

import { answer, audience, issuer } from './lines.mjs'

const keys = buildGetJwks({ issuersWhitelist: [issuer], providerDiscovery: true })

await answer(createVerifier({
  key: async ({ header: { kid, alg } }) => {
    const jwk = await keys.getJwk({ kid, alg, domain: issuer })
    return createPublicKey({ key: jwk, format: 'jwk' }).export({ type: 'spki', format: 'pem' })
  },
  allowedIss: issuer, allowedAud: audience, algorithms: ['EdDSA', 'ES256', 'RS256'],
}))
