"""Headless Chromium, driven by its DevTools protocol over a pipe: opens a page, runs script in it, takes pictures."""
import base64
import json
import os
import shutil
import subprocess
import time


def find():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab; a context manager. `said` gathers console lines and what the Content-Security-Policy blocked."""

    def __init__(self, folder, width=1280, height=1000, dark=False):
        self.width, self.height, self.dark = width, height, dark
        self.folder, self.number, self.said, self.rest = folder, 0, [], b""

    def __enter__(self):
        to_it, self.to_it = os.pipe()
        self.from_it, from_it = os.pipe()
        # The protocol's pipe is at descriptors 3 and 4, which the shell puts there.
        command = f'exec "$0" "$@" 3<&{to_it} 4>&{from_it}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, find(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={self.folder}/profile", "about:blank"],
            pass_fds=[to_it, from_it], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_it)
        os.close(from_it)
        self.session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(domain + ".enable")
        self.resize(self.width, self.height, self.dark)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.to_it)
        os.close(self.from_it)

    def _read(self):
        while b"\0" not in self.rest:
            piece = os.read(self.from_it, 1 << 16)
            assert piece, "Chromium ended"
            self.rest += piece
        line, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Audits.issueAdded":
            self.said.append(json.dumps(params["issue"])[:500])
        return message

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_it, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def resize(self, width, height, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def open(self, url):
        self.run("window.left = true")
        self.call("Page.navigate", url=url)
        self.wait("!window.left && document.readyState == 'complete'", f"{url} is loaded")

    def run(self, script):
        """The value of an expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self):
        return self.run("document.body ? document.body.innerText : ''")

    def wait(self, script, what, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while not self.run(script):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self.text()[:2000]}\n{self.said}"
            time.sleep(0.05)

    def picture(self, path, height=None):
        if height:
            self.resize(self.width, height, self.dark)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
