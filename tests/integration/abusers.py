"""Hostile clients for tests and benches: each keeps at it until its `with` ends, and counts what it did."""
import contextlib
import re
import select
import socket
import struct
import threading
from typing import Callable, NamedTuple

from front import connect

# ---- connections that are held ----


def open_many(target, n, data=b""):
    """n connections to the HTTP port, each of which has said `data`."""
    socks = []
    for _ in range(n):
        sock = connect(target)
        if data:
            sock.sendall(data)
        socks.append(sock)
    return socks


class Held:
    """n connections to the HTTP port that have said `data`, and say one byte more every drip_s; a new one for each that is cut."""

    def __init__(self, target, n, data=b"", drip_s=None):
        self.target, self.n, self.data, self.drip_s = target, n, data, drip_s
        self.n_cut = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.drip)

    def drip(self):
        """A tenth of them at a time."""
        part = 0
        while self.drip_s and not self.stop.wait(self.drip_s / 10):
            part = (part + 1) % 10
            for i in range(part, self.n, 10):
                try:
                    self.socks[i].send(b"a")
                except OSError:
                    self.n_cut += 1
                    self.socks[i].close()
                    with contextlib.suppress(OSError):
                        self.socks[i] = open_many(self.target, 1, self.data)[0]

    def counts(self):
        return {"connections": self.n, "cut": self.n_cut}

    def __enter__(self):
        self.socks = open_many(self.target, self.n, self.data)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        for sock in self.socks:
            sock.close()


# ---- floods ----

class Attack(NamedTuple):
    """What a connection says first, and then again and again: make(state) is (state, bytes), from state 1 on; no bytes: no more."""
    door: str  # "http" or "grpc"
    hello: bytes
    make: Callable


class Flood:
    """Connections that send what an attack makes as fast as they can, again where they are cut."""

    def __init__(self, target, attack, n_connections=4):
        self.target, self.attack = target, attack
        self.n_connections = self.n_cut = self.n_bytes = 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(n_connections)]

    def run(self):
        address = self.target.grpc if self.attack.door == "grpc" else f"{self.target.host}:{self.target.port}"
        host, port = address.rsplit(":", 1)
        while not self.stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as sock:
                if self.target.https:
                    sock = self.target.https.wrap_socket(sock, server_hostname="localhost")
                self.n_connections += 1
                self.one(sock)

    def one(self, sock):
        sock.settimeout(0.2)
        sock.sendall(self.attack.hello)
        state = 1
        while not self.stop.is_set():
            state, data = self.attack.make(state)
            try:
                if not data:
                    sock.recv(65536)
                    return
                sock.sendall(data)
                self.n_bytes += len(data)
                while select.select([sock], [], [], 0)[0] and sock.recv(65536):
                    pass
            except TimeoutError:
                return
            except OSError:
                self.n_cut += 1
                return

    def counts(self):
        return {"connections": self.n_connections, "cut": self.n_cut, "KiB": self.n_bytes >> 10}

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


# ---- of HTTP/1.1 ----

CHUNK = b"10000\r\n" + b"a" * 65536 + b"\r\n"


def chunks(n):
    """A body of 1 GB."""
    return n + 1, CHUNK if n <= 1 << 14 else b""


def headers(n):
    """A head of 100,000 headers."""
    return n + 1, b"A: b\r\n" * 1000 if n <= 100 else b""


CHUNKS = Attack("http", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunks)
HEADERS = Attack("http", b"GET / HTTP/1.1\r\nHost: x\r\n", headers)

# ---- of HTTP/2, on the gRPC port ----

HEADERS_FRAME, RST_STREAM_FRAME, SETTINGS_FRAME, PING_FRAME, WINDOW_UPDATE_FRAME, CONTINUATION_FRAME = 1, 3, 4, 6, 8, 9
END_HEADERS = 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header that is in no table (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HELLO = PREFACE + frame(SETTINGS_FRAME, 0, 0)
# POST, http, and the path of Generate.
CALL = (b"\x83\x86\x04\x1c/baton.v1.Inference/Generate\x01\x01x" + literal(b"te", b"trailers") +
        literal(b"content-type", b"application/grpc"))


def given_up(stream):
    """A call, opened and at once given up (CVE-2023-44487)."""
    return frame(HEADERS_FRAME, END_HEADERS, stream, CALL) + frame(RST_STREAM_FRAME, 0, stream, b"\0\0\0\x08")


def resets(stream):
    return stream + 400, b"".join(given_up(i) for i in range(stream, stream + 400, 2))


def continuations(stream):
    """A head that never ends (CVE-2024-27316, CVE-2023-33953)."""
    start = frame(HEADERS_FRAME, 0, 1, CALL) if stream == 1 else b""
    return 3, start + frame(CONTINUATION_FRAME, 0, 1, literal(b"x", b"y" * 100)) * 500


def pings(stream):
    return stream, frame(PING_FRAME, 0, 0, b"12345678") * 500


def settings(stream):
    return stream, frame(SETTINGS_FRAME, 0, 0, b"\0\3\0\0\0\x64") * 500


def windows(stream):
    return stream, frame(WINDOW_UPDATE_FRAME, 0, 0, b"\0\0\0\1") * 500


HTTP2_FLOODS = {make.__name__: Attack("grpc", HELLO, make) for make in (resets, continuations, pings, settings, windows)}

# ---- what the router says of itself ----


def printed_bound_kb(cluster):
    """What the start log says that all HTTP connections may hold."""
    return float(re.search(r"and ([0-9.]+) MiB for all that they send", cluster.router.log_path.read_text())[1]) * 1024
