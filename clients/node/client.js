// A client of Watchword, and of the services that it guards.
//
//     const watchword = connect('auth.example.internal:443')
//     const session = await watchword.login('alice', password)
//     await unary(notes, 'ListNotes', {}, session.metadata())
//     await session.refresh()
//     await session.logout()
//
// Calls fail with the errors of @grpc/grpc-js. Act on reason(error), never on
// the error's message.

import { fileURLToPath } from 'node:url'

import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

// Where watchword/v1/*.proto are.
export const protoDir = fileURLToPath(new URL('../../proto', import.meta.url))

const ownProtoDir = fileURLToPath(new URL('proto', import.meta.url))

// A call that takes longer than this will hardly come back: the slowest one,
// Login, hashes a password for some tens of milliseconds.
const defaultTimeout = 10_000 // milliseconds

// load reads proto files, by their names below one of the folders, and returns
// what they define by package, as in load(…).watchword.v1.AuthService. Fields
// are in camel case, enums are names, and 64-bit numbers are strings.
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

// unary makes a call and returns a promise of its answer.
export function unary(client, method, request, metadata = new grpc.Metadata(), timeout = defaultTimeout) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline: Date.now() + timeout }, (error, response) => {
      if (error) reject(error)
      else resolve(response)
    })
  })
}

// errorInfo returns the google.rpc.ErrorInfo of Watchword in an error: its
// reason, and its metadata, where `method` names the method that refused an
// access token. There is none, and it returns undefined, in any other error.
export function errorInfo(error) {
  const [trailer] = error?.metadata?.get('grpc-status-details-bin') ?? []
  if (!trailer) return undefined
  return rpc.Status.deserialize(trailer).details
    .filter((detail) => detail.type_url === 'type.googleapis.com/google.rpc.ErrorInfo')
    .map((detail) => rpc.ErrorInfo.deserialize(detail.value))
    .find((info) => info.domain === 'watchword')
}

// reason says why a call was refused, by the names of the proto enum ErrorReason
// less its prefix, as in 'TOKEN_EXPIRED'; undefined if Watchword didn't say.
export function reason(error) {
  return errorInfo(error)?.reason
}

// bearer is the metadata that carries an access token.
export function bearer(accessToken) {
  const metadata = new grpc.Metadata()
  metadata.set('authorization', `Bearer ${accessToken}`)
  return metadata
}

// connect prepares a connection, which the first call makes. It speaks TLS
// unless it is given other credentials: passwords and tokens travel on it.
export function connect(address, credentials = grpc.credentials.createSsl()) {
  return new Watchword(address, credentials)
}

class Watchword {
  constructor(address, credentials) {
    this.auth = new v1.AuthService(address, credentials)
    this.users = new v1.UserService(address, credentials)
  }

  // login starts a session. Without an audience its tokens are for all services.
  async login(username, password, audience = []) {
    const { tokens } = await unary(this.auth, 'Login', { username, password, audience })
    return new Session(this.auth, tokens)
  }

  // verify asks the server whom an access token speaks for.
  async verify(accessToken, audience = '') {
    const { principal } = await unary(this.auth, 'Verify', { accessToken, audience })
    return principal
  }

  close() {
    this.auth.close()
    this.users.close()
  }
}

// Session holds a session's newest tokens.
class Session {
  #auth
  #refreshing

  constructor(auth, tokens) {
    this.#auth = auth
    this.tokens = tokens
  }

  // metadata authorizes one call by the newest access token.
  metadata() {
    return bearer(this.tokens.accessToken)
  }

  // refresh replaces the tokens. Calls that overlap share one refresh.
  refresh() {
    this.#refreshing ??= this.#spend().finally(() => { this.#refreshing = undefined })
    return this.#refreshing
  }

  async #spend() {
    const { refreshToken } = this.tokens
    this.tokens = (await unary(this.#auth, 'Refresh', { refreshToken })).tokens
  }

  // logout ends the session. To do it again does no harm.
  async logout() {
    await unary(this.#auth, 'Logout', { refreshToken: this.tokens.refreshToken })
  }
}
