"""A prefill worker in Python that speaks Registry.Attach and the KV link, and can lie on both.

It needs nothing of Baton but what is written down: proto/registry.proto, proto/kv.proto and the header in
common/kv/kv_wire.h. The honest half (join, hello, frames, commit) is here; tests/integration/test_hostile_prefill.py
bends it."""
import importlib
import os
import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import xxhash

ROOT = Path(__file__).resolve().parent.parent.parent
MAGIC, CONTROL, FRAME = 0x564B5442, 1, 2
PAGE_TOKENS = 16
WAIT_S = 20


def load_protos():
    """registry_pb2, registry_pb2_grpc, kv_pb2, made from the .proto files of this tree."""
    out = tempfile.mkdtemp(prefix="baton-proto-")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}",
                    f"--grpc_python_out={out}", "registry.proto", "kv.proto"], check=True)
    sys.path.insert(0, out)
    return [importlib.import_module(name) for name in ("registry_pb2", "registry_pb2_grpc", "kv_pb2")]


registry, registry_grpc, kv = load_protos()


def new_id():
    return registry.Id(hi=int.from_bytes(os.urandom(8), "little"), lo=int.from_bytes(os.urandom(8), "little"))


def hash64(data):
    return xxhash.xxh3_64_intdigest(data)


def hash128(data):
    value = xxhash.xxh3_128_intdigest(data)
    return value >> 64, value & (1 << 64) - 1


class Layout:
    """The 64 bytes of a fingerprint, and what follows from them."""

    def __init__(self, fingerprint):
        self.bytes = fingerprint
        (self.model_hash, self.layers, self.kv_heads, self.head_dim, self.page_tokens, self.kv_type, self.wire_type,
         self.inner_order, self.profile, self.contract) = struct.unpack("<Q9I20x", fingerprint)
        head = {1: self.head_dim * 2, 2: self.head_dim * 4, 3: self.head_dim + 4}[self.kv_type]  # bf16, f32, int8 and its scale
        self.page_bytes = self.page_tokens * self.kv_heads * 2 * head

    @property
    def hash(self):
        return hash64(self.bytes)

    def with_field(self, name, value):
        fields = [self.model_hash, self.layers, self.kv_heads, self.head_dim, self.page_tokens, self.kv_type,
                  self.wire_type, self.inner_order, self.profile, self.contract]
        names = ["model_hash", "layers", "kv_heads", "head_dim", "page_tokens", "kv_type", "wire_type", "inner_order",
                 "profile", "contract"]
        fields[names.index(name)] = value
        return Layout(struct.pack("<Q9I20x", *fields))

    def blocks(self, tokens, tenant=""):
        """Chained hashes (hi, lo) of the prompt's blocks, the unfinished last one included."""
        h = hash128(struct.pack("<Q", self.hash) + tenant.encode())
        out = []
        for i in range(0, len(tokens), PAGE_TOKENS):
            part = tokens[i:i + PAGE_TOKENS]
            h = hash128(struct.pack(f"<QQ{len(part)}I", *h, *part))
            out.append(h)
        return out


def learn_join(baton, model, log_dir, args=()):
    """The Join of a real prefill worker with this model: a router that only listens is all it takes."""
    joins = queue.Queue()

    class Router(registry_grpc.RegistryServicer):
        def Attach(self, messages, context):
            context.send_initial_metadata((("baton-attached", "1"),))  # then the worker joins
            for message in messages:
                for item in message.items:
                    if item.WhichOneof("item") == "join":
                        joins.put(item.join)
                        return
                    yield registry.RouterMessage()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    registry_grpc.add_RegistryServicer_to_server(Router(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open(Path(log_dir) / "probe.log", "wb") as log:
        worker = subprocess.Popen([str(a) for a in [baton, "prefill", "--name", "probe", "--model", model, "--router",
                                                    f"127.0.0.1:{port}", *args]],
                                  stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        return joins.get(timeout=120)
    finally:
        worker.kill()
        worker.wait()
        server.stop(None)


class Attached:
    """Attached to a router as a prefill worker: receives real tickets."""

    def __init__(self, address, join, name="hostile"):
        self.join = registry.Join()
        self.join.CopyFrom(join)
        self.join.name = name
        self.join.incarnation.CopyFrom(new_id())
        self.layout = Layout(join.fingerprint)
        self.out = queue.Queue()
        self.works = queue.Queue()
        self.claimed = []
        self.peers = []
        self.welcome = threading.Event()
        self.error = None
        self.marker = 0
        self.pieces = b""
        self.channel = grpc.insecure_channel(address)
        self.say(join=self.join)
        self.call = registry_grpc.RegistryStub(self.channel).Attach(iter(self.out.get, None))
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        assert self.welcome.wait(WAIT_S), f"no welcome: {self.error}"

    def say(self, **item):
        self.out.put(registry.WorkerMessage(items=[registry.WorkerItem(**item)]))

    def status(self):
        # A little backlog: while the others are idle, what it was not meant to get goes to them.
        return registry.Status(census=self.join.census, backlog_tokens=PAGE_TOKENS, running=self.marker)

    def _beat(self):
        while self.call.is_active():
            if self.welcome.is_set():
                self.say(status=self.status())
            time.sleep(0.1)

    def _read(self):
        try:
            for message in self.call:
                for item in message.items:
                    self._take(item)
        except grpc.RpcError as error:
            self.error = error

    def _take(self, item):
        kind = item.WhichOneof("item")
        if kind == "welcome":
            self.welcome.set()
        elif kind == "refused":
            self.error = item.refused.reason
        elif kind == "peers":
            self.peers = list(item.peers.peers)
        elif kind == "prefill" and list(item.prefill.tokens) in self.claimed:
            self.works.put(item.prefill)
        elif kind == "prefill":  # the others were busy
            self.say(ended=registry.Ended(key=item.prefill.key, reason=registry.END_FULL))
        elif kind == "piece":
            self.pieces += item.piece.data
            if len(self.pieces) == item.piece.total_bytes:
                whole = registry.RouterItem.FromString(self.pieces)
                self.pieces = b""
                self._take(whole)

    def claim(self, *prompts):
        """Says that it has these prompts in its cache, so that the router prefers it; all others it declines. The
        marker in the status that follows shows up in /debug/workers when the router has read it."""
        self.claimed = list(prompts)
        blocks = [b for tokens in prompts for b in self.layout.blocks(tokens)[:len(tokens) // PAGE_TOKENS]]
        self.say(blocks=registry.Blocks(sequence=1, census_first=True, census_last=True,
                                        added=[lo for _, lo in blocks]))
        self.marker = 1000 + len(blocks)
        self.say(status=self.status())

    def leave(self):
        """May be called again."""
        self.call.cancel()
        self.out.put(None)
        self.channel.close()


class Link:
    """One connection to a decode worker's link port."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lock = threading.Lock()
        self.heard = queue.Queue()
        self.is_open = True
        threading.Thread(target=self._read, daemon=True).start()

    # ---- bytes ----

    @staticmethod
    def header(kind, length, lease=0, layer=0, generation=0, first_page=0, n_pages=0, offset=0, magic=MAGIC):
        body = struct.pack("<IIIIQIIII", magic, kind, lease, layer, generation, first_page, n_pages, offset, length)
        return body + struct.pack("<Q", hash64(body))

    def send_bytes(self, data):
        """False where the other side has closed."""
        try:
            with self.lock:
                self.socket.sendall(data)
            return True
        except OSError:
            return False

    def say(self, **message):
        return self.send_bytes(self.control(**message))

    @classmethod
    def control(cls, **message):
        payload = kv.LinkMessage(**message).SerializeToString()
        return cls.header(CONTROL, len(payload), generation=hash64(payload)) + payload

    @classmethod
    def frame(cls, grant, layer, first_page, pages, sums=None, **forged):
        """Whole pages of one layer, as bytes; forged replaces fields of the header."""
        payload = b"".join(pages)
        if sums is None:
            sums = [hash64(page) for page in pages]
        fields = {"lease": grant.lease, "generation": grant.generation, "layer": layer, "first_page": first_page,
                  "n_pages": len(pages), **forged}
        return cls.header(FRAME, len(payload), **fields) + struct.pack(f"<{len(sums)}Q", *sums) + payload

    def send_frame(self, *args, **forged):
        return self.send_bytes(self.frame(*args, **forged))

    def _exactly(self, n):
        data = b""
        while len(data) < n:
            part = self.socket.recv(n - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _read(self):
        try:
            while True:
                body = self._exactly(48)
                magic, kind, _, _, payload_hash, _, _, _, length = struct.unpack("<IIIIQIIII", body[:40])
                assert magic == MAGIC and kind == CONTROL, (magic, kind)
                assert struct.unpack("<Q", body[40:])[0] == hash64(body[:40])
                payload = self._exactly(length)
                assert payload_hash == hash64(payload)
                message = kv.LinkMessage.FromString(payload)
                if message.WhichOneof("message") != "ping":
                    self.heard.put(message)
        except (EOFError, OSError):
            pass
        self.is_open = False
        self.heard.put(None)

    # ---- the protocol ----

    def expect(self, *kinds):
        """The next message but pings, which must be of one of these kinds; 'closed' for the end."""
        message = self.heard.get(timeout=WAIT_S)
        kind = message.WhichOneof("message") if message else "closed"
        assert kind in kinds, f"{kinds} expected, heard {kind}: {message}"
        return getattr(message, kind) if message else None

    def _ping(self):
        while self.is_open and self.say(ping=kv.Ping()):
            time.sleep(0.2)

    def join(self, peer, layout, incarnation, name="hostile", protocol=(1, 1)):
        self.say(join=kv.LinkJoin(name=name, incarnation=incarnation, peer=peer, protocol_min=protocol[0],
                                  protocol_max=protocol[1], fingerprint=layout.bytes))
        return self

    def up(self):
        welcome = self.expect("welcome")
        threading.Thread(target=self._ping, daemon=True).start()
        return welcome

    def hello(self, work, layout, **forged):
        hi, lo = layout.blocks(list(work.tokens), work.tenant)[-1]
        fields = {"ticket": work.ticket, "chain": registry.Id(hi=hi, lo=lo), "n_tokens": len(work.tokens), **forged}
        return self.say(hello=kv.Hello(**fields))

    def commit(self, work, layout, grant, sums, **forged):
        """sums: {(page, layer): sum} of everything that was sent."""
        hi, lo = layout.blocks(list(work.tokens), work.tenant)[-1]
        ordered = [sums[key] for key in sorted(sums)]
        fields = {"ticket": work.ticket, "chain": registry.Id(hi=hi, lo=lo), "lease": grant.lease,
                  "generation": grant.generation, "n_sums": len(ordered),
                  "manifest": hash64(struct.pack(f"<{len(ordered)}Q", *ordered)), "fingerprint_hash": layout.hash,
                  "token": 1, **forged}
        return self.say(commit=kv.Commit(**fields))

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first
        self.socket.close()


def page_of(layout, layer, page, salt=0):
    """Bytes of a page that no model would make."""
    return bytes((layer * 31 + page * 7 + salt + i * 5) & 0x3F for i in range(layout.page_bytes))


def send_all(link, layout, grant, skip=(), salt=0):
    """Every page of the prompt in order, but those in skip; {(page, layer): sum} of what was sent."""
    sums = {}
    for layer in range(layout.layers):
        for page in range(grant.pages_held, grant.pages):
            if (page, layer) in skip:
                continue
            data = page_of(layout, layer, page, salt)
            sums[page, layer] = hash64(data)
            assert link.send_frame(grant, layer, page, [data])
    return sums
