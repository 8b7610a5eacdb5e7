// Servers as child processes of a test. Each server ends with the test, even if the test
// is killed.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const startTimeout = 30_000 // milliseconds; a start takes tens of milliseconds
const stopTimeout = 15_000 // milliseconds; above the servers' own timeout for a stop

const keeper = fileURLToPath(new URL('keeper.js', import.meta.url))

// binary returns the path of a program from an environment variable. binary throws if
// the variable is empty, because a skipped test would look like a passed test.
export function binary(variable) {
  const path = process.env[variable]
  if (!path) throw new Error(`${variable} is not set: set it to the path of the program to test, see README.md`)
  return resolve(path)
}

// start runs a server in the folder dir, and waits for a line on standard error that
// matches ready. After startTimeout, start kills the server. If the server ends before
// the line, start throws an error with the server's output.
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
  output // the stream of standard output, for its 'data' events

  #program
  #child
  #closed // a promise of the exit status, kept when all output has been read

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

  // line waits for a line of standard error that matches pattern, and returns the match.
  line(pattern) {
    const found = new Promise((resolve) => {
      this.#child.on('line', (line) => {
        const match = line.match(pattern)
        if (match) resolve(match)
      })
    })
    const ended = this.#closed.then(([code]) => {
      throw new Error(`${this.#program} ended with status ${code} before it was ready:\n${this.stderr}`)
    })
    return Promise.race([found, ended])
  }

  // stop sends SIGTERM and returns the server's exit status. After stopTimeout, stop
  // kills the server; then the status is not 0. Callers may call stop again.
  async stop() {
    const timer = setTimeout(() => this.kill(), stopTimeout)
    this.#child.kill('SIGTERM')
    const [code] = await this.#closed
    clearTimeout(timer)
    return code
  }

  // kill ends the keeper's standard input, and so makes the keeper kill the server.
  kill() {
    this.#child.stdin.destroy()
  }
}

// environment returns the test's environment without the variables that configure a
// server.
function environment() {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('WATCHWORD_')))
}
