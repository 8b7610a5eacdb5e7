// A client of Watchword, and of services that Watchword guards.
//
//     const watchword = connect('auth.example.internal:443')
//     const session = await watchword.login('alice', password)
//     await unary(notes, 'ListNotes', {}, session.metadata())
//     await session.refresh()
//     await session.logout()
//
// Calls fail with the errors of @grpc/grpc-js. A program must compare reason(error),
// because the error's message may change.

import { fileURLToPath } from 'node:url'

import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

// protoDir holds the path of the folder with watchword/v1/*.proto.
export const protoDir = fileURLToPath(new URL('../../proto', import.meta.url))

const ownProtoDir = fileURLToPath(new URL('proto', import.meta.url))

// defaultTimeout bounds a call. The slowest call, Login, hashes a password for some tens
// of milliseconds, so after 10 seconds an answer is unlikely.
const defaultTimeout = 10_000 // milliseconds

// load reads proto files and returns the definitions by package, as in
// load(…).watchword.v1.AuthService. files holds paths relative to protoDir or to a
// folder in dirs. Fields have names in camel case; enums become names, and 64-bit
// numbers become strings.
export function load(files, dirs = []) {
  return grpc.loadPackageDefinition(protoLoader.loadSync(files, {
    includeDirs: [protoDir, ...dirs],
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  }))
}

const { watchword: { v1 } } = load(['watchword/v1/auth.proto', 'watchword/v1/user.proto'])
const { google: { rpc } } = load(['google/rpc/status.proto'], [ownProtoDir])

// unary makes a call and returns a promise of the response.
export function unary(client, method, request, metadata = new grpc.Metadata(), timeout = defaultTimeout) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline: Date.now() + timeout }, (error, response) => {
      if (error) reject(error)
      else resolve(response)
    })
  })
}

// errorInfo returns Watchword's google.rpc.ErrorInfo from an error, with reason and
// metadata. If an access token was refused, metadata.method names the refusing method.
// For any other value errorInfo returns undefined, also for a malformed answer: errorInfo
// never throws, because a second error in a catch block would hide the first.
export function errorInfo(error) {
  const trailers = attempt(() => [...error.metadata.get('grpc-status-details-bin')]) ?? []
  return trailers
    .flatMap((trailer) => attempt(() => rpc.Status.deserialize(trailer).details) ?? [])
    .filter((detail) => detail.type_url === 'type.googleapis.com/google.rpc.ErrorInfo')
    .map((detail) => attempt(() => rpc.ErrorInfo.deserialize(detail.value)))
    .find((info) => info?.domain === 'watchword')
}

// attempt returns the result of read, and undefined if read throws.
function attempt(read) {
  try {
    return read()
  } catch {
    return undefined
  }
}

// reason returns the reason of a refused call: a name of the proto enum ErrorReason
// without the prefix, such as 'TOKEN_EXPIRED'. reason returns undefined for an error
// without Watchword's ErrorInfo, and never throws.
export function reason(error) {
  return errorInfo(error)?.reason
}

// bearer returns metadata with an access token.
export function bearer(accessToken) {
  const metadata = new grpc.Metadata()
  metadata.set('authorization', `Bearer ${accessToken}`)
  return metadata
}

// connect returns a client of a server. The first call opens the connection. The
// connection carries passwords and tokens, so connect uses TLS unless the caller passes
// other credentials.
export function connect(address, credentials = grpc.credentials.createSsl()) {
  return new Watchword(address, credentials)
}

class Watchword {
  constructor(address, credentials) {
    this.auth = new v1.AuthService(address, credentials)
    this.users = new v1.UserService(address, credentials)
  }

  // login starts a session. audience lists the services that may accept the session's
  // access tokens; without an audience, the first --audience of the server may. To administer
  // users, give ['watchword'] alone.
  async login(username, password, audience = []) {
    const { tokens } = await unary(this.auth, 'Login', { username, password, audience })
    return new Session(this.auth, tokens)
  }

  // verify asks the server to check an access token, and returns the token's principal.
  async verify(accessToken, audience = '') {
    const { principal } = await unary(this.auth, 'Verify', { accessToken, audience })
    return principal
  }

  close() {
    this.auth.close()
    this.users.close()
  }
}

// Session holds the newest tokens of a session.
class Session {
  #auth
  #refreshing

  constructor(auth, tokens) {
    this.#auth = auth
    this.tokens = tokens
  }

  // metadata returns metadata for a call, with the newest access token.
  metadata() {
    return bearer(this.tokens.accessToken)
  }

  // refresh replaces the tokens. Overlapping calls of refresh share a single request,
  // because the server accepts a refresh token once.
  refresh() {
    this.#refreshing ??= this.#replaceTokens().finally(() => { this.#refreshing = undefined })
    return this.#refreshing
  }

  async #replaceTokens() {
    const { refreshToken } = this.tokens
    this.tokens = (await unary(this.#auth, 'Refresh', { refreshToken })).tokens
  }

  // logout ends the session. A second logout also succeeds.
  async logout() {
    await unary(this.#auth, 'Logout', { refreshToken: this.tokens.refreshToken })
  }
}
