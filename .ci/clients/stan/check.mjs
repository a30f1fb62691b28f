// Publish and ack, replay, durables over a restart, queue groups and redelivery with node-nats-streaming.
// Usage: check.mjs PATH_OF_MIDGE
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import stan from 'node-nats-streaming'

const folder = mkdtempSync(join(tmpdir(), 'midge-stan-'))
const listener = createServer().listen(0, '127.0.0.1')
await once(listener, 'listening')
const port = listener.address().port
listener.close()
let server

async function start() {
  server = spawn(process.argv[2], ['-a', '127.0.0.1', '-p', String(port), '-cid', 'check', '-st', 'FILE', '-dir', folder],
    { stdio: ['ignore', 'ignore', 'inherit'] })
  for (let tries = 0; ; tries++) {
    try {
      const client = await connect('probe')
      client.close()
      await once(client, 'close')
      return
    } catch (error) {
      if (tries === 100) throw error
      await new Promise(resolve => setTimeout(resolve, 50))
    }
  }
}
async function stop(signal = 'SIGINT') {
  const gone = once(server, 'exit')
  server.kill(signal)
  await gone
}
function connect(id) {
  return new Promise((resolve, reject) => {
    const client = stan.connect('check', id, { url: `nats://127.0.0.1:${port}`, reconnect: false })
    client.on('connect', () => resolve(client))
    client.on('error', reject)
  })
}
const publish = (client, channel, data) => new Promise((resolve, reject) =>
  client.publish(channel, data, (error, guid) => error ? reject(new Error(error)) : resolve(guid)))
async function close(client) {
  const closed = once(client, 'close')
  client.close()
  await closed
}
function collect(subscription, count) {
  return new Promise((resolve, reject) => {
    const seen = []
    const late = setTimeout(() => reject(new Error(`only ${seen.length} of ${count} messages came`)), 20000)
    subscription.on('error', reject)
    subscription.on('message', message => {
      seen.push(message)
      if (seen.length === count) {
        clearTimeout(late)
        resolve(seen)
      }
    })
  })
}
function equal(got, expected, what) {
  if (JSON.stringify(got) !== JSON.stringify(expected)) {
    throw new Error(`${what}: got ${JSON.stringify(got)}, expected ${JSON.stringify(expected)}`)
  }
}
const sequences = messages => messages.map(message => message.getSequence())

try {
  await start()
  let client = await connect('me')
  for (let i = 1; i <= 20; i++) await publish(client, 'foo', `m${i}`)
  const all = client.subscribe('foo', client.subscriptionOptions().setDeliverAllAvailable())
  equal((await collect(all, 20)).map(m => m.getData()), Array.from({ length: 20 }, (_, i) => `m${i + 1}`), 'replay')
  const late = client.subscribe('foo', client.subscriptionOptions().setStartAtSequence(18))
  equal(sequences(await collect(late, 3)), [18, 19, 20], 'replay from a sequence')

  const durable = () => client.subscribe('foo', client.subscriptionOptions()
    .setDeliverAllAvailable().setDurableName('dur').setManualAckMode(true).setAckWait(1000).setMaxInFlight(5))
  const first = await collect(durable(), 5)
  first.slice(0, 3).forEach(message => message.ack())
  await new Promise(resolve => client.nc.flush(resolve))
  await close(client)
  await stop('SIGKILL')
  await start()
  client = await connect('me')
  const resumed = durable()
  resumed.on('message', message => message.ack())
  equal(sequences(await collect(resumed, 17)), Array.from({ length: 17 }, (_, i) => i + 4), 'the durable after kill -9')

  const group = () => client.subscribe('work', 'g', client.subscriptionOptions())
  const shares = [0, 0]
  const members = [group(), group()]
  await Promise.all(members.map(member => once(member, 'ready')))
  members.forEach((member, i) => member.on('message', () => shares[i]++))
  for (let i = 0; i < 50; i++) await publish(client, 'work', 'x')
  for (let tries = 0; shares[0] + shares[1] < 50 && tries < 200; tries++) await new Promise(resolve => setTimeout(resolve, 20))
  equal(shares[0] + shares[1], 50, 'messages of the group')
  if (shares.some(share => share === 0)) throw new Error(`one member got everything: ${shares}`)

  const big = 'b'.repeat(900000)
  await publish(client, 'big', big)
  const got = await collect(client.subscribe('big', client.subscriptionOptions().setDeliverAllAvailable()), 1)
  equal(got[0].getData() === big, true, 'a large payload')
  await close(client)
  await stop()
  console.log('streaming client: replay, durable over kill -9, queue group, large payload: ok')
} finally {
  server.kill('SIGKILL')
  rmSync(folder, { recursive: true, force: true })
}
