"""What may not join or start: one sentence that names what is wrong, exit code 2, and nobody else notices."""
import json
import os
import socket
import struct
import subprocess
import time

import pytest
from cluster import Cluster, Process

SMALL = ["--kv-tokens", 2048, "--threads", 1]


@pytest.fixture(scope="module")
def cluster(baton, tiny, tmp_path_factory):
    with Cluster(baton, tiny, tmp_path_factory.mktemp("logs"), worker_args=SMALL) as cluster:
        yield cluster


def serves(cluster):
    """The cluster answers as ever."""
    choice = cluster.complete([5, 6, 7, 8], max_tokens=4, ignore_eos=True)
    assert len(choice["token_ids"]) == 4
    return True


def sentences(text):
    """The lines of a log that speak of an error, without time and role."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["level"] == "error"]


def ends_refused(process, word, timeout_s=60):
    """It ends with 2, was never ready, and says one sentence with this word in it."""
    code = process.process.wait(timeout_s)
    text = process.text()
    assert code == 2, (code, text)
    assert process.ready is None and "ready:" not in text
    said = sentences(text)
    assert len(said) == 1 and word in said[0], text
    return said[0]


def names(cluster):
    return sorted(w["name"] for w in cluster.json("/debug/workers")["workers"] if w["state"] == "up")


# ---- joining ----

@pytest.mark.parametrize("role", ["decode", "prefill"])
@pytest.mark.parametrize("what", ["model", "precision", "kv-cache-dtype"])
def test_another_layout_is_refused_at_join(baton, cluster, tiny, role, what):
    extra = {"precision": ["--precision", "exact"], "kv-cache-dtype": ["--kv-cache-dtype", "int8"]}.get(what, [])
    # The same vocabulary, so that the text is the same, and other weights.
    model = tiny.with_name("tiny-llama-Q8_0.gguf") if what == "model" else tiny
    stranger = cluster.start_worker(role, f"stranger-{role}-{what}", extra, model=model)
    said = ends_refused(stranger, {"model": "model_hash", "kv-cache-dtype": "kv_type"}.get(what, ""))
    assert f"worker stranger-{role}-{what} cannot join" in said, said
    del cluster.workers[stranger.name]
    assert names(cluster) == ["decode-0", "prefill-0"]
    assert serves(cluster)


def test_two_workers_with_one_name(cluster):
    first = cluster.workers["decode-0"]
    twin = cluster.start_worker("decode", "decode-0")
    try:
        Cluster.wait_for(lambda: "the name decode-0 is taken" in twin.text(), "the twin is told why")
        refused = "baton_worker_joins_refused_total"
        before, since = cluster.metrics()[refused], time.monotonic()

        def tries():
            return cluster.metrics()[refused] - before

        Cluster.wait_for(lambda: tries() >= 10, "it tries again")
        assert tries() <= (time.monotonic() - since) / 0.1 + 1  # but does not spin: a redial waits for 0.1 to 0.5 s
        assert twin.process.poll() is None and twin.ready is None
        assert twin.text().count("is taken") <= 2, twin.text()
        assert serves(cluster)
        # The name is free once the first has gone: the twin takes its place.
        assert first.stop() == 0, first.text()
        twin.wait_ready()
        Cluster.wait_for(lambda: cluster.get("/ready")[0] == 200, "the twin serves")
        assert names(cluster) == ["decode-0", "prefill-0"]
        assert serves(cluster)
    finally:
        if first.process.poll() is None:
            first.kill()


# ---- addresses and ports ----

def finishes(args, timeout_s=60):
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout_s)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("args, option", [
    (["decode", "--router", "10.1.2.3:8400"], "router"),
    (["prefill", "--router", "10.1.2.3:8400"], "router"),
    (["decode", "--router", "127.0.0.1:1", "--link-listen", "0.0.0.0:0"], "link-listen"),
    (["decode", "--router", "127.0.0.1:1", "--link-advertise", "192.0.2.1:9000"], "link-advertise"),
    (["router", "--registry-listen", "0.0.0.0:0"], "registry-listen"),
])
def test_other_machines_need_insecure(baton, tiny, args, option):
    code, out, err = finishes([baton, *args, "--model", tiny])
    assert code == 2 and out == "", (code, out, err)
    assert len(err.splitlines()) == 1 and option in err and "--insecure" in err, err


def test_insecure_allows_it(cluster):
    worker = cluster.start_worker("decode", "decode-open", ["--link-listen", "0.0.0.0:0", "--link-advertise",
                                                            "127.0.0.1:9", "--insecure"])
    assert worker.wait_ready()["link"] == "127.0.0.1:9"
    assert cluster.workers.pop("decode-open").stop() == 0


def test_link_port_in_use(cluster):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = cluster.start_worker("decode", "decode-late", ["--link-listen", address])
        del cluster.workers["decode-late"]
        said = ends_refused(worker, address)
        assert "in use" in said, said
    assert serves(cluster)


@pytest.mark.parametrize("option", ["--registry-listen", "--listen"])
def test_router_port_in_use(baton, tiny, option):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = ["--port", port] if option == "--listen" else ["--port", 0, option, f"127.0.0.1:{port}"]
        code, out, err = finishes([baton, "router", "--model", tiny, *other])
    assert code == 2 and out == "", (code, out, err)
    assert str(port) in err, err


# ---- model files ----

def string(text):
    return struct.pack("<Q", len(text)) + text


def broken_models(good):
    """{name: bytes} of files that lie or stop early."""
    n_tensors, n_pairs = struct.unpack_from("<QQ", good, 8)
    head = good[:8]
    first_pair = good[24:]

    def counts(tensors, pairs):
        return head + struct.pack("<QQ", tensors, pairs) + good[24:]

    at = good.index(string(b"blk.0.attn_k.weight"))  # name, dimensions, type, offset
    info = at + len(string(b"blk.0.attn_k.weight"))
    n_dims, = struct.unpack_from("<I", good, info)
    type_at = info + 4 + 8 * n_dims

    def put(where, form, value):
        return good[:where] + struct.pack(form, value) + good[where + struct.calcsize(form):]

    return {
        "empty": b"",
        "not a model": b"This is no model file.\n" * 40,
        "magic only": good[:4],
        "header only": good[:24],
        "in the metadata": good[:2000],
        "one byte short": good[:-1],
        "half": good[:len(good) // 2],
        "version 99": put(4, "<I", 99),
        "too many tensors": counts(1 << 60, n_pairs),
        "one tensor more": counts(n_tensors + 1, n_pairs),
        "too many pairs": counts(n_tensors, 1 << 60),
        "no pairs": counts(n_tensors, 0),
        "key longer than the file": head + struct.pack("<QQ", n_tensors, n_pairs) + struct.pack("<Q", 1 << 62) +
        first_pair[8:],
        "offset past the end": put(type_at + 4, "<Q", 1 << 40),
        "offset that overflows": put(type_at + 4, "<Q", (1 << 64) - 32),
        "offset off its alignment": put(type_at + 4, "<Q", 1),
        "dimensions that overflow": put(info + 4, "<Q", 1 << 62),
        "a dimension of 0": put(info + 4, "<Q", 0),
        "nine dimensions": put(info, "<I", 9),
        "unknown type": put(type_at, "<I", 77),
    }


BROKEN = ["empty", "not a model", "magic only", "header only", "in the metadata", "one byte short", "half",
          "version 99", "too many tensors", "one tensor more", "too many pairs", "no pairs",
          "key longer than the file", "offset past the end", "offset that overflows", "offset off its alignment",
          "dimensions that overflow", "a dimension of 0", "nine dimensions", "unknown type"]


def listens(pid):
    """Inodes of the process's listening TCP sockets."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{table}").readlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes.add(fields[9])
    own = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if link.startswith("socket:["):
            own.add(link[8:-1])
    return own & inodes


def test_listens_sees_a_listener(cluster):
    assert listens(cluster.workers["decode-0"].pid)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_model_files(baton, tiny, tmp_path, name):
    models = broken_models(tiny.read_bytes())
    assert sorted(models) == sorted(BROKEN)
    path = tmp_path / "broken.gguf"
    path.write_bytes(models[name])
    for args in (["decode", "--router", "127.0.0.1:1", "--name", "w", *SMALL],
                 ["prefill", "--router", "127.0.0.1:1", "--name", "w", *SMALL],
                 ["router", "--port", 0, "--registry-listen", "127.0.0.1:0"], ["inspect"]):
        model = [path] if args == ["inspect"] else ["--model", path]
        code, out, err = finishes([baton, *args, *model])
        assert code == 2 and out == "", (args, code, out, err)
        # Nothing else is said: no port was opened, or the log would name it.
        assert len(err.splitlines()) == 1 and "broken.gguf" in err, (args, err)


def test_no_port_is_open_before_the_model_is(baton, tmp_path):
    """A FIFO that nobody writes holds the worker where it opens its model, unless it refuses what is no file."""
    fifo = tmp_path / "model.gguf"
    os.mkfifo(fifo)
    worker = Process("waits", [baton, "decode", "--router", "127.0.0.1:1", "--model", fifo, *SMALL], tmp_path)
    try:
        seen = set()
        deadline = time.monotonic() + 10
        while worker.process.poll() is None and time.monotonic() < deadline and not seen:
            try:
                seen = listens(worker.pid)
            except OSError:
                break
            time.sleep(0.02)
        assert not seen
        if worker.process.poll() is not None:  # it does not wait for a FIFO: it is refused
            assert worker.process.returncode == 2 and len(sentences(worker.text())) == 1, worker.text()
    finally:
        worker.kill()


def test_a_model_that_is_not_there(baton, tmp_path):
    for model in (tmp_path / "absent.gguf", tmp_path):
        for role in ("decode", "prefill"):
            code, out, err = finishes([baton, role, "--router", "127.0.0.1:1", "--model", model, *SMALL])
            assert code == 2 and out == "" and len(sentences(err)) == 1 and str(model) in err, err


# ---- closed descriptors ----

@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_standard_descriptors_closed(baton, cluster, tiny, closed):
    """What is printed does not go into a socket that has taken the number."""
    name = "decode-" + "".join(c for c in closed if c.isalnum()) + "x"
    command = (f'exec "$0" decode --name {name} --model "$1" --router {cluster.registry} --kv-tokens 2048 --threads 1 '
               + closed)
    worker = subprocess.Popen(["sh", "-c", command, str(baton), str(tiny)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        Cluster.wait_for(lambda: name in names(cluster), "the worker joins")
        links = [os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in (1, 2)]
        assert not any(link.startswith(("socket:", "anon_inode:", "pipe:")) for link in links), links
        assert serves(cluster)
        worker.terminate()
        assert worker.wait(60) == 0
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
