"""asyncio-nats-streaming against a server binary: python check.py PATH

The library is from 2018: its asyncio-nats-client passes `loop` to functions that have lost that parameter, so the few it
uses are given it back here. Nothing of the protocol is touched."""

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
import time


def without_loop(function):
    def call(*arguments, **options):
        options.pop("loop", None)
        return function(*arguments, **options)
    return call


for name in ["Queue", "Lock", "Event", "Semaphore", "Condition"]:
    setattr(asyncio, name, without_loop(getattr(asyncio, name)))
for name in ["wait_for", "sleep", "wait", "open_connection", "gather"]:
    setattr(asyncio, name, without_loop(getattr(asyncio, name)))

from nats.aio.client import Client as NATS  # noqa: E402
from stan.aio.client import Client as STAN  # noqa: E402


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, path, folder):
        self.path, self.folder, self.port = path, folder, free_port()
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.path, "-a", "127.0.0.1", "-p", str(self.port), "-cid", "check", "-st", "FILE", "-dir", self.folder],
            stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    assert s.recv(5) == b"INFO "
                return
            except OSError:
                assert time.monotonic() < end, "the server does not start"
                time.sleep(0.05)

    def stop(self, with_signal=signal.SIGTERM):
        self.process.send_signal(with_signal)
        self.process.wait()


async def connect(server, name):
    for attempt in range(20):
        nats = NATS()
        await nats.connect("nats://127.0.0.1:%d" % server.port, io_loop=asyncio.get_running_loop())
        stan = STAN()
        try:
            await stan.connect("check", name, nats=nats)
            return nats, stan
        except Exception:  # the engine starts behind the port
            await nats.close()
            if attempt == 19:
                raise
            await asyncio.sleep(0.1)


async def close(nats, stan):
    await stan.close()
    await nats.close()


async def collect(stan, channel, count, **options):
    seen, enough = [], asyncio.get_running_loop().create_future()

    async def on_message(message):
        seen.append(message)
        if len(seen) == count and not enough.done():
            enough.set_result(None)

    subscription = await stan.subscribe(channel, cb=on_message, **options)
    await asyncio.wait_for(enough, 30)
    return seen, subscription


async def publish_and_replay(server):
    nats, stan = await connect(server, "me")
    for number in range(200):
        await stan.publish("foo", b"%d" % number)
    seen, subscription = await collect(stan, "foo", 200, start_at="first")
    assert [m.seq for m in seen] == list(range(1, 201)), seen
    assert [m.data for m in seen] == [b"%d" % n for n in range(200)]
    await subscription.unsubscribe()
    seen, subscription = await collect(stan, "foo", 51, start_at="sequence", sequence=150)
    assert seen[0].seq == 150
    await subscription.unsubscribe()
    await close(nats, stan)


async def durable_over_a_kill(server):
    nats, stan = await connect(server, "me")
    seen, _ = await collect(stan, "foo", 200, durable_name="d", start_at="first")
    await close(nats, stan)
    server.stop(signal.SIGKILL)
    server.start()
    nats, stan = await connect(server, "me")
    await stan.publish("foo", b"after")
    seen, subscription = await collect(stan, "foo", 1, durable_name="d", start_at="first")
    # The last acks may have been under way when it closed.
    assert seen[0].seq > 100, seen[0].seq
    await subscription.unsubscribe()
    await close(nats, stan)


async def redelivery(server):
    nats, stan = await connect(server, "me")
    await stan.publish("again", b"x")
    seen, subscription = await collect(stan, "again", 2, start_at="first", manual_acks=True, ack_wait=1)
    assert [m.seq for m in seen] == [1, 1]
    await stan.ack(seen[1])
    await subscription.unsubscribe()
    await close(nats, stan)


async def queue_group(server):
    nats, stan = await connect(server, "me")
    seen, done = [], asyncio.get_running_loop().create_future()

    async def on_message(message):
        seen.append(message.seq)
        if len(seen) == 100 and not done.done():
            done.set_result(None)

    subscriptions = [await stan.subscribe("shared", queue="g", cb=on_message) for _ in range(3)]
    for _ in range(100):
        await stan.publish("shared", b"x")
    await asyncio.wait_for(done, 30)
    await asyncio.sleep(0.2)
    assert sorted(seen) == list(range(1, 101)), seen
    for subscription in subscriptions:
        await subscription.unsubscribe()
    await close(nats, stan)


def main():
    with tempfile.TemporaryDirectory() as folder:
        server = Server(sys.argv[1], folder)
        try:
            for check in [publish_and_replay, durable_over_a_kill, redelivery, queue_group]:
                asyncio.run(check(server))
                print("ok:", check.__name__)
        finally:
            server.stop()


main()
