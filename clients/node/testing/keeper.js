// Runs a program, and kills it when standard input ends. Whoever holds the other
// end of that pipe may die as it likes, by SIGKILL or by a fault, and leaves no
// program behind; a handler of its own would not run then.
//
//     node keeper.js PROGRAM [ARGUMENT]…

import { spawn } from 'node:child_process'

// A terminal sends these to the program too. It stops, and this ends with it.
process.on('SIGINT', () => {})
process.on('SIGHUP', () => {})

const [program, ...args] = process.argv.slice(2)
const child = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'] })
child.once('error', (error) => {
  console.error(error.message)
  process.exit(127)
})
child.once('exit', (code, signal) => {
  if (signal) console.error(`ended by ${signal}`)
  process.exit(code ?? 128)
})
process.on('SIGTERM', () => child.kill('SIGTERM'))
process.stdin.once('close', () => child.kill('SIGKILL')).resume()
