// Reads an access token from each line of standard input, and answers with a line: "ok" and the
// user's id, or "refused" and the error of the library.

import { createInterface } from 'node:readline'

export const [issuer, audience, jwksUri] = process.argv.slice(2)

export async function answer(verify) {
  for await (const token of createInterface({ input: process.stdin })) {
    let line
    try {
      line = `ok ${(await verify(token)).sub}`
    } catch (error) {
      line = `refused ${error.name}: ${error.message}`
    }
    console.log(line.replaceAll('\n', ' '))
  }
}
