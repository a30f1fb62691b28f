#!/usr/bin/env python3
"""The live page in headless Chromium: check.py SERVER [SCREENSHOTS]

Reads live numbers off the page while messages flow, in a wide window, on a phone's, with dark colours and without
JavaScript. Speaks WebDriver to chromedriver (Debian packages chromium and chromium-driver). With a folder given it
leaves pictures there.
"""
import base64, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time, urllib.error, urllib.request

PATIENCE = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fetch(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.read().decode(errors='replace')[:500]}")


def until(what, check):
    end = time.monotonic() + PATIENCE
    while True:
        try:
            found = check()
            if found:
                return found
        except OSError:
            pass
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


class Load(threading.Thread):
    """A subscriber with a name, and a publisher that does not stop."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.going = port, True

    def connect(self, name):
        s = socket.create_connection(("127.0.0.1", self.port))
        s.sendall(b'CONNECT {"verbose":false,"name":"%s"}\r\n' % name.encode())
        return s

    def run(self):
        reader, writer = self.connect("page-reader"), self.connect("page-writer")
        reader.sendall(b"SUB page.> 1\r\n")
        threading.Thread(target=self.drain, args=(reader,), daemon=True).start()
        batch = b"PUB page.load 16\r\n0123456789abcdef\r\n" * 200
        while self.going:
            writer.sendall(batch)
            time.sleep(0.01)

    def drain(self, s):
        while s.recv(1 << 16):
            pass


class Browser:
    def __init__(self, driver, *arguments, prefs=None):
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments]}
        if prefs:
            options["prefs"] = prefs
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}}
        self.url = f"{driver}/session/" + fetch(f"{driver}/session", wanted)["value"]["sessionId"]

    def go(self, url):
        fetch(f"{self.url}/url", {"url": url})

    def run(self, script):
        return fetch(f"{self.url}/execute/sync", {"script": script, "args": []})["value"]

    def text(self, element):
        return self.run(f"const e = document.getElementById('{element}'); return e ? e.textContent : ''")

    def complaints(self):
        entries = fetch(f"{self.url}/se/log", {"type": "browser"})["value"]
        return [e["message"] for e in entries if e["level"] == "SEVERE"]

    def picture(self, folder, name):
        if folder:
            with open(os.path.join(folder, name + ".png"), "wb") as f:
                f.write(base64.b64decode(fetch(f"{self.url}/screenshot")["value"]))

    def close(self):
        fetch(self.url, method="DELETE")


def value(text):
    number, unit = re.fullmatch(r"([\d.]+)([kMG]?)", text).groups()
    return float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]


def check_live(driver, page, folder):
    browser = Browser(driver, "--window-size=1100,1000")
    browser.go(page)
    rate = until("a rate of messages", lambda: (lambda t: t and value(t) > 1000 and value(t))(browser.text("in_msgs")))
    assert rate < 1e6, rate
    until("the reader among the connections", lambda: "page-reader" in browser.text("conns"))
    varz = fetch(page + "varz")
    assert browser.text("connections") == str(varz["connections"]), browser.text("connections")
    assert varz["server_name"] in browser.text("who")
    assert "0" in browser.text("loops") and "no routes" in browser.text("routes")
    until("the channel", lambda: browser.text("channels").find("orders") >= 0)
    first = browser.run("return document.querySelector('#in_msgs').parentElement.querySelector('polyline').getAttribute('points')")
    until("the next refresh", lambda: first != browser.run(
        "return document.querySelector('#in_msgs').parentElement.querySelector('polyline').getAttribute('points')"))
    outside = browser.run("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))")
    assert outside == [], f"assets from elsewhere: {outside}"
    complaints = browser.complaints()
    assert complaints == [], complaints
    browser.picture(folder, "wide")
    browser.close()
    print("ok   live numbers")


def check_phone(driver, page, folder):
    browser = Browser(driver, "--window-size=390,844", "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    browser.go(page)
    until("the cards", lambda: browser.text("in_msgs"))
    wide, shown = browser.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= shown, f"the page is {wide} wide in a window of {shown}"
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    dark = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark and max(map(int, re.findall(r"\d+", background)[:3])) < 64, f"dark mode: {dark}, {background}"
    browser.picture(folder, "phone")
    browser.close()
    print("ok   a phone, dark")


def check_away(driver, page, server):
    browser = Browser(driver)
    browser.go(page)
    until("the cards", lambda: browser.text("in_msgs"))
    server.send_signal(signal.SIGSTOP)
    server.send_signal(signal.SIGKILL)
    server.wait()
    until("a word that the server is away", lambda: "no answer" in browser.text("state"))
    browser.close()
    print("ok   a server that went away")


def check_without_scripts(driver, page, folder):
    browser = Browser(driver, prefs={"profile.managed_default_content_settings.javascript": 2})
    browser.go(page)
    source = fetch(f"{browser.url}/source")["value"]
    for link in ["/varz", "/connz", "/routez", "/subsz", "/healthz", "/metrics"]:
        assert f'href="{link}"' in source, link
    elements = fetch(f"{browser.url}/elements", {"using": "css selector", "value": "noscript p"})["value"]
    assert elements, "without scripts the page says nothing of it"
    browser.picture(folder, "no-scripts")
    browser.close()
    print("ok   without JavaScript")


def publish_to_channel(port):
    """One message to a channel, as a STAN client does it, in the bytes of the protocol."""
    s = socket.create_connection(("127.0.0.1", port))
    field = lambda number, text: bytes([number << 3 | 2, len(text)]) + text.encode()
    lines = s.makefile("rb")
    s.sendall(b'CONNECT {"verbose":false}\r\nSUB in.* 1\r\nSUB hb 2\r\n')
    ask = field(1, "page") + field(2, "hb")
    s.sendall(b"PUB _STAN.discover.test-cluster in.c %d\r\n%s\r\n" % (len(ask), ask))

    def answer(subject):
        while True:
            line = lines.readline().split()
            assert line, "the connection ended"
            if line[0] == b"MSG":
                body = lines.read(int(line[-1]) + 2)
                if line[1] == subject:
                    return body

    prefix = answer(b"in.c")
    prefix = prefix[2:2 + prefix[1]].decode()
    message = field(1, "page") + field(2, "guid") + field(3, "orders") + field(5, "hello")
    s.sendall(b"PUB %s.orders in.a %d\r\n%s\r\n" % (prefix.encode(), len(message), message))
    answer(b"in.a")
    return s


def main():
    path, folder = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    missing = [name for name in ["chromium", "chromedriver"] if not shutil.which(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)} (Debian packages chromium and chromium-driver)")
    port, http, driver_port = free_port(), free_port(), free_port()
    data = tempfile.mkdtemp()
    server = subprocess.Popen([path, "-a", "127.0.0.1", "-p", str(port), "-m", str(http), "--streaming"], stderr=subprocess.DEVNULL)
    driver = subprocess.Popen(["chromedriver", f"--port={driver_port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env={**os.environ, "HOME": data}, start_new_session=True)
    load = Load(port)
    try:
        page, webdriver = f"http://127.0.0.1:{http}/", f"http://127.0.0.1:{driver_port}"
        until("the server", lambda: fetch(page + "healthz"))
        until("chromedriver", lambda: fetch(f"{webdriver}/status")["value"]["ready"])
        load.start()
        streaming = publish_to_channel(port)
        check_live(webdriver, page, folder)
        check_phone(webdriver, page, folder)
        check_without_scripts(webdriver, page, folder)
        load.going = False
        check_away(webdriver, page, server)
        streaming.close()
    finally:
        load.going = False
        server.kill()
        os.killpg(driver.pid, signal.SIGKILL)  # and the browsers it has started
        driver.wait()
        shutil.rmtree(data, ignore_errors=True)


main()
