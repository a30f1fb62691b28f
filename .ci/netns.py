"""Three servers in network namespaces of their own: netns.py PATH-OF-SERVER

A bridge joins them; a link is cut by isolating two of its ports, a node by taking its port down, so packets
vanish as they do on a real network. Everything lives in one PID namespace, and is gone when this process is.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE = 60  # seconds
HUB = "10.77.0.254"
CLIENTS, ROUTES = 4222, 6222
# Short times, so that cut links are noticed soon.
CONFIG = """
listen: 0.0.0.0:%d
ping_interval: 1
ping_max: 2
write_deadline: "1s"
cluster { listen: "%s:%d", routes: [%s] }
client_advertise: "%s:%d"
"""


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cannot make network namespaces: {' '.join(command)}: {done.stderr.strip()}")


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"in {PATIENCE} s there was no {what}")
        time.sleep(0.05)


class Node:
    def __init__(self, server, number, folder):
        self.address, self.port = f"10.77.0.{number}", f"midge{number}"
        routes = "" if number == 1 else f'"nats://10.77.0.1:{ROUTES}"'
        config = os.path.join(folder, f"{number}.conf")
        with open(config, "w") as file:
            file.write(CONFIG % (CLIENTS, self.address, ROUTES, routes, self.address, CLIENTS))
        # The namespace is there before the server, which waits for a line.
        self.process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", 'echo; read line; exec "$0" -c "$1" 2>"$1.log"', server, config],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not self.process.stdout.readline():
            sys.exit("cannot make network namespaces: unshare --net failed")
        pid = str(self.process.pid)
        inside = ["nsenter", "--net", "--target", pid, "ip"]
        run("ip", "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        run("ip", "link", "set", self.port, "master", "hub", "up")
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        self.process.stdin.write("\n")
        self.process.stdin.close()

    def isolate(self, on):
        """Nothing passes between two isolated nodes."""
        run("bridge", "link", "set", "dev", self.port, "isolated", "on" if on else "off")

    def connect(self, on):
        run("ip", "link", "set", self.port, "up" if on else "down")


class Client:
    """Connected to one of the servers it knows, and to another one when that is lost."""

    def __init__(self, address):
        self.known = [f"{address}:{CLIENTS}"]
        self.lines, self.rest, self.socket = [], b"", None
        until(f"server at {address}", self.connect)

    def connect(self):
        for url in self.known:
            host, port = url.rsplit(":", 1)
            try:
                self.socket = socket.create_connection((host, int(port)), 1)
                self.socket.settimeout(1)
                self.lines, self.rest, self.url = [], b"", url
                self.send(b'CONNECT {"verbose":false,"protocol":1}\r\nSUB news 1\r\n')
                if self.ping():
                    return True
            except OSError:
                pass
        return False

    def send(self, data):
        self.socket.sendall(data)

    def ping(self):
        """False when the connection is lost."""
        try:
            self.send(b"PING\r\n")
            while True:
                while b"\r\n" in self.rest:
                    line, self.rest = self.rest.split(b"\r\n", 1)
                    if line.startswith(b"INFO "):
                        self.known += [url for url in json.loads(line[5:]).get("connect_urls", [])
                                       if url not in self.known]
                    elif line == b"PING":
                        self.send(b"PONG\r\n")
                    elif line == b"PONG":
                        return True
                    else:
                        self.lines.append(line)
                data = self.socket.recv(65536)
                if not data:
                    return False
                self.rest += data
        except OSError:
            return False

    def got(self, text):
        assert self.ping(), f"the connection to {self.url} is lost"
        return text in self.lines


def settle(clients):
    """Waits until what each publishes reaches each, and then once for a message and exactly once."""
    for number, publisher in enumerate(clients):
        def reaches_all(attempt=[0]):
            attempt[0] += 1
            text = b"settle %d %d %d" % (id(clients), number, attempt[0])
            publisher.send(b"PUB news %d\r\n%s\r\n" % (len(text), text))
            return publisher.ping() and all([client.got(text) for client in clients])
        until(f"way from {publisher.url} to all others", reaches_all)
    for client in clients:
        client.ping()
        client.lines.clear()
    for number, publisher in enumerate(clients):
        publisher.send(b"".join(b"PUB news 6\r\n%d %04d\r\n" % (number, count) for count in range(1000)))
        until("1000 messages", lambda: all([c.got(b"%d 0999" % number) for c in clients]))
        for client in clients:
            numbers = [line for line in client.lines if line.startswith(b"%d " % number)]
            assert numbers == [b"%d %04d" % (number, count) for count in range(1000)], numbers[:5]


def traffic(clients, seconds):
    """While links are cut, for long enough that both sides give them up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for client in clients:
            client.send(b"PUB news 1000\r\n" + b"." * 1000 + b"\r\n")
            assert client.ping(), f"the connection to {client.url} is lost"
        time.sleep(0.02)


def main(server, folder):
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "hub", "type", "bridge")
    run("ip", "addr", "add", f"{HUB}/24", "dev", "hub")
    run("ip", "link", "set", "hub", "up")
    nodes = [Node(server, number, folder) for number in (1, 2, 3)]
    clients = [Client(node.address) for node in nodes]
    settle(clients)
    for client in clients:
        until("connect_urls of all servers", lambda: client.ping() and len(client.known) == 3)
    print("formed from one seed", flush=True)

    for node in nodes[1:]:
        node.isolate(True)
    traffic(clients, 8)
    clients[1].send(b"PUB news 3\r\ncut\r\n")
    assert clients[1].ping() and clients[0].got(b"cut")
    assert not clients[2].got(b"cut"), "the link is not cut"
    for node in nodes[1:]:
        node.isolate(False)
    settle(clients)
    print("healed after a link between two servers was cut that only a third one made known", flush=True)

    nodes[2].connect(False)
    start = time.monotonic()
    until("lost connection", lambda: not clients[2].ping())
    until("other server", clients[2].connect)
    assert nodes[2].address not in clients[2].url
    print(f"a client went to {clients[2].url} after {time.monotonic() - start:.1f} s", flush=True)
    settle(clients)
    traffic(clients, 4)
    nodes[2].connect(True)
    settle([*clients, Client(nodes[2].address)])
    print("healed after a node was cut", flush=True)
    for node in nodes:
        assert node.process.poll() is None, "a server ended"


if __name__ == "__main__":
    if os.getpid() == 1:
        with tempfile.TemporaryDirectory() as folder:
            main(os.path.abspath(sys.argv[1]), folder)
    else:
        for tool in ("unshare", "nsenter", "ip", "bridge"):
            if not shutil.which(tool):
                sys.exit(f"cannot make network namespaces: {tool} is missing (Debian: util-linux, iproute2)")
        unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*unshare, "true"]).returncode:
            sys.exit("cannot make network namespaces: the rights of root are needed (CAP_SYS_ADMIN, CAP_NET_ADMIN)")
        sys.exit(subprocess.run([*unshare, sys.executable, *sys.argv]).returncode)
