// Servers as child processes of a test. However the test ends, they end with it.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const startTimeout = 30_000 // milliseconds; a start takes tens of them
const stopTimeout = 15_000 // a little more than the servers' own

const keeper = fileURLToPath(new URL('keeper.js', import.meta.url))

// binary returns the path of a program that an environment variable names. A
// test that skipped itself for want of it would pass without having tested.
export function binary(variable) {
  const path = process.env[variable]
  if (!path) throw new Error(`${variable} is not set: it must name the program to test, see README.md`)
  return resolve(path)
}

// start runs a server in a folder and waits for the line on its standard error
// that matches ready. It fails with what the server said if it ends before, or
// is killed because it takes too long.
export async function start(program, args, dir, ready) {
  const server = new Server(program, args, dir)
  const timer = setTimeout(() => server.kill(), startTimeout)
  try {
    server.ready = await server.line(ready)
    return server
  } finally {
    clearTimeout(timer)
  }
}

class Server {
  stdout = ''
  stderr = ''
  ready // the match of the ready line
  output // standard output, for its events

  #program
  #child
  #closed // all that it printed is here, and its exit status

  constructor(program, args, dir) {
    this.#program = program
    this.#child = spawn(process.execPath, [keeper, program, ...args], { cwd: dir, env: environment() })
    this.#closed = once(this.#child, 'close')
    this.output = this.#child.stdout.setEncoding('utf8').on('data', (text) => { this.stdout += text })
    createInterface({ input: this.#child.stderr }).on('line', (line) => {
      this.stderr += line + '\n'
      this.#child.emit('line', line)
    })
  }

  // line waits for a line of standard error and returns its match.
  line(pattern) {
    const found = new Promise((resolve) => {
      this.#child.on('line', (line) => {
        const match = line.match(pattern)
        if (match) resolve(match)
      })
    })
    const ended = this.#closed.then(([code]) => {
      throw new Error(`${this.#program} ended with ${code} before it was ready:\n${this.stderr}`)
    })
    return Promise.race([found, ended])
  }

  // stop asks the server to stop and returns its exit status, which is not 0 if
  // it had to be killed. It may be called again.
  async stop() {
    const timer = setTimeout(() => this.kill(), stopTimeout)
    this.#child.kill('SIGTERM')
    const [code] = await this.#closed
    clearTimeout(timer)
    return code
  }

  // kill makes the keeper kill the server.
  kill() {
    this.#child.stdin.destroy()
  }
}

// environment is ours less what would configure a server.
function environment() {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('WATCHWORD_')))
}
