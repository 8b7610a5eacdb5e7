// Tests the client against real servers: Watchword, and the guarded service in
// examples/notes.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import grpc from '@grpc/grpc-js'
import { createRemoteJWKSet, jwtVerify } from 'jose'

import { bearer, connect, errorInfo, load, reason, unary } from './client.js'
import { binary, start } from './testing/servers.js'

const notesProtoDir = fileURLToPath(new URL('../../examples/notes/proto', import.meta.url))
const { notes: { v1: notesv1 } } = load(['notes/v1/notes.proto'], [notesProtoDir])

const { UNAUTHENTICATED, PERMISSION_DENIED, INVALID_ARGUMENT, UNAVAILABLE } = grpc.status
const insecure = grpc.credentials.createInsecure() // for loopback alone

const watchwordBin = binary('WATCHWORD_BIN')
const notesBin = binary('NOTES_BIN')

const alicePassword = 'a password of alice'
const bobPassword = 'a password of bob'

describe('a client in Node', { timeout: 120_000 }, () => {
  const cleanups = [] // functions to call after the tests, the last first
  let server, service, watchword, notes, admin, alice, bob

  before(async () => {
    const dir = mkdtempSync(join(tmpdir(), 'watchword-node-'))
    process.once('exit', () => rmSync(dir, { recursive: true, force: true }))
    for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1))

    server = await start(watchwordBin, [
      'serve', '--grpc-addr', '127.0.0.1:0', '--http-addr', '127.0.0.1:0', '--datastore-uri', `sqlite:${join(dir, 'w.db')}`,
    ], dir, /\bready\b.*\bgrpc=(?<grpc>\S+) http=(?<http>\S+)/)
    cleanups.push(() => server.stop())
    service = await start(notesBin, [
      '--addr', '127.0.0.1:0', '--auth-addr', server.ready.groups.grpc,
    ], dir, /\bready on (?<addr>\S+)/)
    cleanups.push(() => service.stop())

    watchword = connect(server.ready.groups.grpc, insecure)
    cleanups.push(() => watchword.close())
    notes = new notesv1.NotesService(service.ready.groups.addr, insecure)
    cleanups.push(() => notes.close())

    admin = await watchword.login('admin', await adminPassword(), ['watchword'])
    alice = await createUser('alice', alicePassword, ['writer'])
    bob = await createUser('bob', bobPassword, [])
  })

  after(async () => {
    for (const cleanup of cleanups.reverse()) await cleanup()
  })

  // adminPassword waits for the password on standard output. The ready line comes on
  // standard error, and may be read before the password.
  async function adminPassword() {
    const line = /^(\S+)\n$/
    const signal = AbortSignal.timeout(5_000)
    while (!line.test(server.stdout)) await once(server.output, 'data', { signal })
    return server.stdout.match(line)[1]
  }

  async function createUser(username, password, roles) {
    const { user } = await unary(watchword.users, 'CreateUser', { username, password, roles }, admin.metadata())
    assert.equal(user.username, username)
    assert.deepEqual(user.roles, roles)
    return user
  }

  const list = (metadata) => unary(notes, 'ListNotes', {}, metadata)
  const add = (text, metadata) => unary(notes, 'AddNote', { text }, metadata)

  it('calls a guarded service as the user of the session', async () => {
    const session = await watchword.login('alice', alicePassword)
    const { note } = await add('from Node', session.metadata())
    assert.equal(note.author, 'alice')
    assert.equal(note.authorId, alice.id)
    assert.deepEqual((await list(session.metadata())).notes.at(-1), note)
    await refused(add('', session.metadata()), INVALID_ARGUMENT, undefined)
  })

  it('may call public methods alone without a token', async () => {
    const error = await refused(list(), UNAUTHENTICATED, 'TOKEN_MISSING')
    assert.deepEqual(errorInfo(error), {
      reason: 'TOKEN_MISSING', domain: 'watchword', metadata: { method: '/notes.v1.NotesService/ListNotes' },
    })
    assert.match((await unary(notes, 'About', {})).description, /notes/)
  })

  it('is refused if the user lacks the role', async () => {
    const session = await watchword.login('bob', bobPassword)
    await list(session.metadata())
    await refused(add('no writer', session.metadata()), PERMISSION_DENIED, 'ROLE_REQUIRED')
    await refused(
      unary(watchword.users, 'ListUsers', {}, session.metadata()), UNAUTHENTICATED, 'AUDIENCE_MISMATCH')
    const administration = await watchword.login('bob', bobPassword, ['watchword'])
    await refused(
      unary(watchword.users, 'ListUsers', {}, administration.metadata()), PERMISSION_DENIED, 'ROLE_REQUIRED')
  })

  it('gets the same error for an unknown name and a wrong password', async () => {
    const wrong = await refused(watchword.login('alice', bobPassword), UNAUTHENTICATED, 'INVALID_CREDENTIALS')
    const unknown = await refused(watchword.login('nobody', bobPassword), UNAUTHENTICATED, 'INVALID_CREDENTIALS')
    assert.equal(wrong.details, unknown.details)
  })

  it('refreshes, and refreshes again after a lost answer', async () => {
    const session = await watchword.login('alice', alicePassword)
    const first = session.tokens
    await session.refresh()
    assert.notEqual(session.tokens.accessToken, first.accessToken)
    assert.notEqual(session.tokens.refreshToken, first.refreshToken)
    assert.equal(session.tokens.sessionId, first.sessionId)
    await list(session.metadata())
    await list(bearer(first.accessToken)) // a refresh does not end older access tokens

    // Within the grace, the spent refresh token brings the same new tokens again.
    const again = await unary(watchword.auth, 'Refresh', { refreshToken: first.refreshToken })
    assert.equal(again.tokens.refreshToken, session.tokens.refreshToken)
    await session.refresh()
    await list(session.metadata())
  })

  it('is refused if it mixes up access and refresh tokens', async () => {
    const { tokens } = await watchword.login('alice', alicePassword)
    await refused(list(bearer(tokens.refreshToken)), UNAUTHENTICATED, 'TOKEN_INVALID')
    await refused(
      unary(watchword.auth, 'Refresh', { refreshToken: tokens.accessToken }), UNAUTHENTICATED, 'REFRESH_TOKEN_INVALID')
  })

  it('is refused everywhere after a logout', async () => {
    const session = await watchword.login('alice', alicePassword)
    assert.equal((await watchword.verify(session.tokens.accessToken)).username, 'alice')
    await list(session.metadata())

    await session.logout()
    // Watchword refuses the token at once, and the guarded service after some milliseconds.
    await refused(watchword.verify(session.tokens.accessToken), UNAUTHENTICATED, 'TOKEN_REVOKED')
    await refused(untilRefused(() => list(session.metadata())), UNAUTHENTICATED, 'TOKEN_REVOKED')
    await refused(session.refresh(), UNAUTHENTICATED, 'SESSION_REVOKED')
    await session.logout()
  })

  it('gets new roles by a refresh', async () => {
    const session = await watchword.login('bob', bobPassword)
    const grant = { user: { id: bob.id, roles: ['writer'] }, updateMask: { paths: ['roles'] } }
    await unary(watchword.users, 'UpdateUser', grant, admin.metadata())
    await refused(untilRefused(() => list(session.metadata())), UNAUTHENTICATED, 'TOKEN_STALE')
    await session.refresh()
    assert.equal((await add('a writer now', session.metadata())).note.author, 'bob')
  })

  describe('with jose', () => {
    let http, issuer, keys

    before(async () => {
      http = `http://${server.ready.groups.http}`
      const metadata = await (await fetch(`${http}/.well-known/oauth-authorization-server`)).json()
      assert.equal(metadata.jwks_uri, `${http}/.well-known/jwks.json`)
      issuer = metadata.issuer
      keys = createRemoteJWKSet(new URL(`${http}/.well-known/jwks.json`))
    })

    const verify = (token, audience = 'internal') =>
      jwtVerify(token, keys, { issuer, audience, typ: 'at+jwt', algorithms: ['EdDSA'] })

    it('verifies an access token by the published keys', async () => {
      const { tokens } = await watchword.login('alice', alicePassword)
      const { payload, protectedHeader } = await verify(tokens.accessToken)
      assert.equal(protectedHeader.kid.length, 16)
      assert.equal(payload.sub, alice.id)
      assert.equal(payload.sid, tokens.sessionId)
      assert.equal(payload.username, 'alice')
      assert.deepEqual(payload.roles, ['writer'])
      await assert.rejects(verify(tokens.accessToken, 'external'), { code: 'ERR_JWT_CLAIM_VALIDATION_FAILED' })
    })

    it('rejects a changed token, as Watchword and the guarded service do', async () => {
      const { tokens } = await watchword.login('alice', alicePassword)
      for (const token of [withAdminRole(tokens.accessToken), withChangedSignature(tokens.accessToken)]) {
        await assert.rejects(verify(token), { code: 'ERR_JWS_SIGNATURE_VERIFICATION_FAILED' })
        await refused(list(bearer(token)), UNAUTHENTICATED, 'TOKEN_INVALID')
        await refused(watchword.verify(token), UNAUTHENTICATED, 'TOKEN_INVALID')
      }
    })
  })

  // This test must come last, because the test stops the servers.
  it('watches until the service stops', async () => {
    const session = await watchword.login('alice', alicePassword)
    const { notes: known } = await list(session.metadata())
    assert.ok(known.length > 0)
    const stream = notes.WatchNotes({}, session.metadata())
    const messages = stream[Symbol.asyncIterator]()
    for (const note of known) assert.deepEqual((await messages.next()).value.note, note)
    const { note } = await add('seen by the watcher', session.metadata())
    assert.deepEqual((await messages.next()).value.note, note)

    const ended = refused(messages.next(), UNAVAILABLE, undefined)
    assert.equal(await service.stop(), 0, service.stderr)
    await ended
    assert.equal(await server.stop(), 0, server.stderr)
    assert.match(server.stdout, /^\S+\n$/, 'standard output must hold the password alone')
    assert.equal(service.stdout, '')
  })
})

// refused waits for a call, and returns the call's error. refused fails unless the error
// has the status code and the reason why.
async function refused(call, code, why) {
  const error = await call.then(() => assert.fail(`the call succeeded, want ${why ?? grpc.status[code]}`), (error) => error)
  if (error instanceof assert.AssertionError) throw error
  assert.deepEqual({ code: error.code, reason: reason(error) }, { code, reason: why }, error.message)
  return error
}

// untilRefused repeats a call until the call fails, and throws the call's error. A test
// cannot wait for the moment at which a service learns of a revocation, so untilRefused
// repeats the call. A service usually learns within milliseconds.
async function untilRefused(call) {
  const deadline = Date.now() + 5_000
  while (Date.now() < deadline) {
    await call()
    await delay(5)
  }
  assert.fail('the call still succeeds after five seconds')
}

// withAdminRole changes a token's roles to admin, and keeps the old signature.
function withAdminRole(token) {
  const [header, payload, signature] = token.split('.')
  const claims = JSON.parse(Buffer.from(payload, 'base64url'))
  claims.roles = ['admin']
  return [header, Buffer.from(JSON.stringify(claims)).toString('base64url'), signature].join('.')
}

// withChangedSignature changes a bit in the middle of a token's signature.
function withChangedSignature(token) {
  const [header, payload, signature] = token.split('.')
  const bytes = Buffer.from(signature, 'base64url')
  bytes[bytes.length / 2] ^= 1
  return [header, payload, bytes.toString('base64url')].join('.')
}
