import * as oauth from 'oauth4webapi'

import { answer, audience, issuer } from './lines.mjs'

const insecure = { [oauth.allowInsecureRequests]: true } // for a server on this machine alone
const options = { [oauth.clockTolerance]: 0, ...insecure } // else an expired token passes for 30 seconds
const server = await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...insecure })
  .then((response) => oauth.processDiscoveryResponse(new URL(issuer), response))

await answer((token) => {
  const request = new Request('http://localhost/', { headers: { authorization: `Bearer ${token}` } })
  return oauth.validateJwtAccessToken(server, request, audience, options)
})
