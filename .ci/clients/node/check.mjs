// The Node client against a server binary: node check.mjs PATH

import { connect, headers, StringCodec } from "nats";
import { spawn } from "node:child_process";
import net from "node:net";

const path = process.argv[2];
const text = StringCodec();

function freePort() {
  return new Promise((resolve) => {
    const listener = net.createServer().listen(0, "127.0.0.1", () => {
      const { port } = listener.address();
      listener.close(() => resolve(port));
    });
  });
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.once("data", () => { socket.destroy(); resolve(true); });
    socket.once("error", () => resolve(false));
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Server {
  async start() {
    this.port ??= await freePort();
    this.process = spawn(path, ["-a", "127.0.0.1", "-p", String(this.port)], { stdio: "ignore" });
    for (let tries = 0; !(await answers(this.port)); tries++) {
      if (tries > 200) throw new Error("the server does not start");
      await pause(50);
    }
  }

  stop() {
    return new Promise((resolve) => { this.process.once("exit", resolve); this.process.kill("SIGTERM"); });
  }
}

function same(got, expected) {
  if (got !== expected) throw new Error(`expected ${expected}, got ${got}`);
}

async function next(subscription) {
  const { value } = await subscription[Symbol.asyncIterator]().next();
  return value;
}

const checks = {
  async pub_sub(open) {
    const [a, b] = [await open(), await open()];
    const subscriptions = ["a.b", "a.*", "a.>"].map((subject) => a.subscribe(subject, { max: 1 }));
    await a.flush();
    const head = headers();
    head.set("Colour", "blue");
    b.publish("a.b", text.encode("hello"), { headers: head });
    for (const subscription of subscriptions) {
      const message = await next(subscription);
      same(text.decode(message.data), "hello");
      same(message.headers.get("Colour"), "blue");
    }
  },

  async queue(open) {
    const seen = new Set();
    const counts = [0, 0, 0];
    for (let i = 0; i < 3; i++) {
      const member = await open();
      member.subscribe("work", {
        queue: "q",
        callback: (_, message) => { seen.add(text.decode(message.data)); counts[i]++; },
      });
      await member.flush();
    }
    const publisher = await open();
    for (let i = 0; i < 600; i++) publisher.publish("work", text.encode(String(i)));
    await publisher.flush();
    for (let tries = 0; seen.size < 600 && tries < 400; tries++) await pause(50);
    same(seen.size, 600);
    same(counts[0] + counts[1] + counts[2], 600);
    if (Math.min(...counts) === 0) throw new Error("a member got nothing");
  },

  async request(open) {
    const [a, b] = [await open(), await open()];
    a.subscribe("service", { callback: (_, message) => message.respond(message.data) });
    await a.flush();
    for (let i = 0; i < 100; i++) {
      const answer = await b.request("service", text.encode(String(i)), { timeout: 10000 });
      same(text.decode(answer.data), String(i));
    }
    const error = await b.request("nobody", text.encode(""), { timeout: 10000 }).catch((e) => e);
    same(String(error.code), "503");
  },

  async large(open) {
    const client = await open();
    const subscription = client.subscribe("large", { max: 5 });
    const data = new Uint8Array(1 << 20).map((_, i) => (i * 7) % 251);
    for (let i = 0; i < 5; i++) client.publish("large", data);
    let count = 0;
    for await (const message of subscription) {
      same(Buffer.compare(Buffer.from(message.data), Buffer.from(data)), 0);
      count++;
    }
    same(count, 5);
  },

  async many(open) {
    const client = await open();
    const subscriptions = Array.from({ length: 1000 }, (_, i) => client.subscribe(`many.${i}`, { max: 1 }));
    await client.flush();
    for (let i = 0; i < 1000; i++) client.publish(`many.${i}`, text.encode(String(i)));
    for (let i = 0; i < 1000; i++) same(text.decode((await next(subscriptions[i])).data), String(i));
  },

  async reconnect(open, server) {
    const client = await open({ reconnectTimeWait: 100, maxReconnectAttempts: -1 });
    const subscription = client.subscribe("after", { max: 1 });
    await client.flush();
    const back = (async () => { for await (const s of client.status()) if (s.type === "reconnect") return; })();
    await server.stop();
    await server.start();
    await back;
    client.publish("after", text.encode("here again"));
    same(text.decode((await next(subscription)).data), "here again");
  },
};

const server = new Server();
await server.start();
let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  const clients = [];
  const open = async (options = {}) => {
    const client = await connect({ servers: `127.0.0.1:${server.port}`, ...options });
    clients.push(client);
    return client;
  };
  const late = pause(90000).then(() => { throw new Error("took too long"); });
  late.catch(() => {});
  try {
    await Promise.race([check(open, server), late]);
    console.log("PASS node", name);
  } catch (error) {
    failed++;
    console.log("FAIL node", name, error);
  }
  for (const client of clients) await client.close();
}
await server.stop();
process.exit(failed > 0 ? 1 : 0);
