"""nats-py against a server binary: python check.py PATH"""

import asyncio
import socket
import subprocess
import sys
import time

import nats
from nats.errors import NoRespondersError


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, path):
        self.path, self.port = path, free_port()
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.path, "-a", "127.0.0.1", "-p", str(self.port)],
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

    def stop(self):
        self.process.terminate()
        self.process.wait()


async def settle(client):
    """Returns when the server has all subscriptions of this client. nats-py writes the PING of a flush
    past subscriptions it has still buffered, so one flush proves nothing; by the second they are out."""
    await client.flush()
    await client.flush()


async def connect(server, **options):
    return await nats.connect("nats://127.0.0.1:%d" % server.port, **options)


async def pub_sub(server):
    a, b = await connect(server), await connect(server)
    subs = [await a.subscribe(s) for s in ("a.b", "a.*", "a.>")]
    await settle(a)
    await b.publish("a.b", b"hello", headers={"Colour": "blue"})
    for sub in subs:
        msg = await sub.next_msg(timeout=10)
        assert msg.data == b"hello" and msg.headers["Colour"] == "blue"
    await a.close()
    await b.close()


async def queue(server):
    got = []
    clients = []
    for i in range(3):
        c = await connect(server)

        async def on(msg, i=i):
            got.append((i, msg.data))
        await c.subscribe("work", queue="q", cb=on)
        await settle(c)
        clients.append(c)
    p = await connect(server)
    for i in range(600):
        await p.publish("work", b"%d" % i)
    await settle(p)
    end = time.monotonic() + 20
    while len(got) < 600 and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert sorted(int(d) for _, d in got) == list(range(600)), len(got)
    assert len({i for i, _ in got}) == 3
    for c in clients + [p]:
        await c.close()


async def request(server):
    a, b = await connect(server), await connect(server)

    async def answer(msg):
        await msg.respond(msg.data[::-1])
    await a.subscribe("service", cb=answer)
    await settle(a)
    for i in range(100):
        assert (await b.request("service", b"%03d" % i, timeout=10)).data == (b"%03d" % i)[::-1]
    try:
        await b.request("nobody", b"", timeout=10)
        raise AssertionError("an answer from nobody")
    except NoRespondersError:
        pass
    await a.close()
    await b.close()


async def large(server):
    c = await connect(server)
    sub = await c.subscribe("large")
    data = bytes(i * 7 % 251 for i in range(1 << 20))
    for _ in range(5):
        await c.publish("large", data)
    for _ in range(5):
        assert (await sub.next_msg(timeout=20)).data == data
    await c.close()


async def many(server):
    c = await connect(server)
    subs = [await c.subscribe("many.%d" % i) for i in range(1000)]
    await settle(c)
    for i in range(1000):
        await c.publish("many.%d" % i, b"%d" % i)
    for i, sub in enumerate(subs):
        assert (await sub.next_msg(timeout=20)).data == b"%d" % i
    await c.close()


async def reconnect(server):
    back = asyncio.Event()

    async def reconnected():
        back.set()
    c = await connect(server, reconnected_cb=reconnected, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
    sub = await c.subscribe("after")
    await settle(c)
    server.stop()
    server.start()
    await asyncio.wait_for(back.wait(), 30)
    await c.publish("after", b"here again")
    assert (await sub.next_msg(timeout=10)).data == b"here again"
    await c.close()


async def main():
    server = Server(sys.argv[1])
    failed = 0
    try:
        for check in (pub_sub, queue, request, large, many, reconnect):
            try:
                await asyncio.wait_for(check(server), 90)
                print("PASS python", check.__name__)
            except Exception as error:  # every failure is reported, whatever it is
                failed += 1
                print("FAIL python", check.__name__, repr(error))
    finally:
        server.stop()
    sys.exit(failed > 0)


asyncio.run(main())
