// Runs a program, and kills the program when standard input ends. The test holds the
// other end of that pipe. So the program ends with the test, even after SIGKILL or a
// crash, when the test's own handlers do not run.
//
//     node keeper.js PROGRAM [ARGUMENT]…

import { spawn } from 'node:child_process'

// A terminal sends both signals to the program as well. The program stops, and the
// keeper ends after the program.
process.on('SIGINT', () => {})
process.on('SIGHUP', () => {})

const [program, ...args] = process.argv.slice(2)
const child = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'] })
child.once('error', (error) => {
  console.error(error.message)
  process.exit(127)
})
child.once('exit', (code, signal) => {
  if (signal) console.error(`${program} was ended by ${signal}`)
  process.exit(code ?? 128)
})
process.on('SIGTERM', () => child.kill('SIGTERM'))
process.stdin.once('close', () => child.kill('SIGKILL')).resume()
