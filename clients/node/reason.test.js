// Tests that errorInfo and reason read every error without throwing: both are called in a
// catch block, where a second error would hide the first.

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import grpc from '@grpc/grpc-js'

import { errorInfo, load, reason } from './client.js'

const { google: { rpc } } = load(['google/rpc/status.proto'], [new URL('proto', import.meta.url).pathname])

const infoType = 'type.googleapis.com/google.rpc.ErrorInfo'
const info = { type_url: infoType, value: rpc.ErrorInfo.serialize({ reason: 'TOKEN_EXPIRED', domain: 'watchword', metadata: {} }) }
const other = { type_url: infoType, value: rpc.ErrorInfo.serialize({ reason: 'QUOTA', domain: 'example.com', metadata: {} }) }
const broken = { type_url: infoType, value: Buffer.from([0x0a, 0xff]) } // a string that is longer than the message
const unknown = { type_url: 'type.googleapis.com/google.rpc.RetryInfo', value: Buffer.from([0xff]) }

const status = (...details) => rpc.Status.serialize({ code: 16, message: 'refused', details })

// withTrailers returns an error with the values of grpc-status-details-bin.
function withTrailers(...values) {
  const metadata = new grpc.Metadata()
  for (const value of values) metadata.add('grpc-status-details-bin', value)
  return Object.assign(new Error('refused'), { code: 16, metadata })
}

// answering returns an error with metadata that answers get with a value.
const answering = (value) => ({ metadata: { get: () => value } })

describe('reason', () => {
  it('finds the reason among other details', () => {
    for (const error of [
      withTrailers(status(info)), withTrailers(status(unknown, other, info)), withTrailers(status(broken, info)),
      withTrailers(Buffer.from([0xff]), status(info)), answering([new Uint8Array(status(info))]),
    ]) {
      assert.equal(reason(error), 'TOKEN_EXPIRED')
      assert.equal(errorInfo(error).domain, 'watchword')
    }
  })

  const throwing = new Proxy({}, { get() { throw new Error('no property can be read') } })
  for (const [what, error] of Object.entries({
    'nothing': undefined, 'null': null, 'a text': 'refused', 'a number': 16, 'a symbol': Symbol('refused'), 'an ordinary error': new Error('refused'),
    'metadata of null': { metadata: null }, 'metadata without get': { metadata: {} }, 'metadata of another kind': { metadata: new Map() },
    'a get that is no function': { metadata: { get: 'refused' } }, 'a get that throws': { metadata: { get() { throw new Error('get') } } },
    'a property that throws': throwing, 'metadata that throws': { metadata: throwing },
    'no trailer': withTrailers(), 'a trailer of null': answering([null]), 'trailers of null': answering(null), 'a trailer outside a list': answering(7),
    'a text for a trailer': answering(['refused']), 'a number for a trailer': answering([7]), 'an object for a trailer': answering([{ length: 5 }]),
    'an empty trailer': withTrailers(Buffer.alloc(0)), 'a byte': withTrailers(Buffer.from([0xff])), 'zero bytes': withTrailers(Buffer.alloc(9)),
    'half a status': withTrailers(status(info).subarray(0, 20)), 'a status without details': withTrailers(status()),
    'a detail that is cut': withTrailers(status(broken)), 'a detail without a value': withTrailers(status({ type_url: infoType })),
    'an unknown detail': withTrailers(status(unknown)), 'the detail of another domain': withTrailers(status(other)),
    'a group that does not end': withTrailers(Buffer.alloc(4096, 0x0b)),
  })) {
    it(`returns undefined for ${what}`, () => {
      assert.equal(reason(error), undefined)
      assert.equal(errorInfo(error), undefined)
    })
  }

  it('throws for no bytes whatever', () => {
    let seed = 1
    const random = (below) => (seed = (seed * 48271) % 2147483647) % below // the same bytes in every run
    const good = status(unknown, info)
    for (let i = 0; i < 20_000; i++) {
      const bytes = Buffer.from(good)
      for (let flips = 1 + random(4); flips > 0; flips--) bytes[random(bytes.length)] = random(256)
      const found = reason(withTrailers(bytes.subarray(0, random(bytes.length + 1))))
      assert.ok(found === undefined || typeof found === 'string')
    }
  })
})
