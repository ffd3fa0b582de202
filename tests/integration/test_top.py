"""`baton top`: one plain picture for pipes, a live one in a terminal that is put back on every way out."""
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest
from cluster import Process
from front import front

ENTER, LEAVE = b"\033[?1049h\033[?25l", b"\033[?25h\033[?1049l"


@pytest.fixture(scope="module")
def server(baton, tiny, tmp_path_factory):
    with front(baton, tiny, tmp_path_factory.mktemp("logs"), ["--by-index", "--interval-us", 500]) as cluster:
        cluster.complete([5, 6, 7], max_tokens=8)
        yield cluster


def once(server, *args, **env):
    return subprocess.run([server.baton, "top", *args], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "LC_ALL": "C.UTF-8", **env})


def test_once(server):
    done = once(server, "--once", server.url)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert len(lines) <= 25 and max(map(len, lines)) <= 80 and "\033" not in done.stdout
    assert "serving" in lines[0] and "PREFILL" in done.stdout and "DECODE" in done.stdout and "TTFT p50" in done.stdout
    assert "3>8" in done.stdout
    assert once(server, server.url).returncode == 0  # no terminal: the same
    done = once(server, server.url, LC_ALL="C", COLUMNS="132", LINES="50")
    assert done.stdout.isascii() and max(map(len, done.stdout.split("\n"))) <= 132


def test_refusals(server):
    done = once(server, "http://127.0.0.1:1")
    assert done.returncode == 1 and "is a router running there?" in done.stderr
    done = once(server, "ftp://x")
    assert done.returncode == 2 and "ftp://x" in done.stderr


def test_over_https(baton, tiny, logs):
    certs = logs / "certs"
    subprocess.run([baton, "certs", certs], check=True, capture_output=True)
    router = Process("router", [baton, "router", "--model", tiny, "--port", 0, "--registry-listen", "127.0.0.1:0", "--http-tls-cert",
                                certs / "http.pem", "--http-tls-key", certs / "http-key.pem"], logs)
    try:
        url = f"https://localhost:{router.wait_ready()['http'].rsplit(':', 1)[1]}"
        done = subprocess.run([baton, "top", "--once", "--ca-file", certs / "ca.pem", url], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "no decode worker" in done.stdout, (done.stdout, done.stderr)
        done = subprocess.run([baton, "top", "--once", url], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    finally:
        router.kill()


class Terminal:
    """`baton top` in a pseudo terminal of a given size."""

    def __init__(self, server, columns=80, rows=24):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave, self.seen = slave, b""
        self.process = subprocess.Popen([server.baton, "top", server.url], stdin=slave, stdout=slave, stderr=slave,
                                        env={**os.environ, "LC_ALL": "C.UTF-8"}, start_new_session=True)

    def wait_for(self, mark, timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while mark not in self.seen:
            assert time.monotonic() < deadline, (mark, self.seen[-2000:])
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)

    def end(self):
        self.wait_for(LEAVE)
        code = self.process.wait(30)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.master)
        os.close(self.slave)
        return code


@pytest.mark.parametrize("how", ["q", signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_puts_the_terminal_back(server, how):
    terminal = Terminal(server)
    terminal.wait_for(b"network")
    assert terminal.seen.startswith(ENTER)
    assert not termios.tcgetattr(terminal.slave)[3] & (termios.ECHO | termios.ICANON)
    if how == "q":
        os.write(terminal.master, b"q")
    else:
        terminal.process.send_signal(how)
    assert terminal.end() == 0


def test_stopped_and_continued(server):
    """Ctrl-Z gives the terminal back for as long as it is stopped."""
    terminal = Terminal(server)
    terminal.wait_for(b"network")
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.wait_for(LEAVE)
    assert os.WIFSTOPPED(os.waitpid(terminal.process.pid, os.WUNTRACED)[1])
    assert termios.tcgetattr(terminal.slave) == terminal.before
    terminal.seen = b""
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for(ENTER)
    terminal.wait_for(b"network")
    terminal.process.terminate()
    assert terminal.end() == 0


def test_goes_on_without_a_router(baton, tiny, logs):
    """The last picture stays, the loss is said, and a router that comes back is shown."""
    with front(baton, tiny, logs) as cluster:
        terminal = Terminal(cluster)
        terminal.wait_for(b"serving")
        cluster.router.kill()
        terminal.wait_for(b"no contact for")
        assert b"TTFT" in terminal.seen[terminal.seen.index(b"no contact for"):] or not terminal.wait_for(b"TTFT")
        cluster.router_args += ["--port", cluster.port, "--grpc-port", 0]
        cluster.start_router()
        terminal.seen = b""
        terminal.wait_for(b"no decode worker")
        terminal.process.terminate()
        assert terminal.end() == 0
