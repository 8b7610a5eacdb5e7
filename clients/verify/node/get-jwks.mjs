import { createVerifier } from 'fast-jwt'
import buildGetJwks from 'get-jwks'

import { answer, audience, issuer } from './lines.mjs'

const keys = buildGetJwks({ issuersWhitelist: [issuer], providerDiscovery: true })

await answer(createVerifier({
  key: ({ header: { kid, alg } }) => keys.getPublicKey({ kid, alg, domain: issuer }),
  allowedIss: issuer, allowedAud: audience, algorithms: ['EdDSA', 'ES256', 'RS256'],
}))
