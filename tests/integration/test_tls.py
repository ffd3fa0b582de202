"""TLS between routers and workers: same tokens as without, who is refused and in which words, new certificates under load."""
import socket
import ssl
import signal
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from certificates import client_context, issue, make_certs, serial_of
from cluster import Cluster, Process, tls_args
from cryptography import x509

SMALL = ["--kv-tokens", 4096, "--threads", 1]
WAIT_S = 30


@pytest.fixture(scope="module")
def certs(baton, tmp_path_factory):
    return make_certs(baton, tmp_path_factory.mktemp("certs") / "certs")


@pytest.fixture(scope="module")
def foreign(baton, tmp_path_factory):
    """Another authority's certificates of the same names."""
    return make_certs(baton, tmp_path_factory.mktemp("certs") / "foreign")


@pytest.fixture(scope="module")
def cluster(baton, tiny, certs, tmp_path_factory):
    with Cluster(baton, tiny, tmp_path_factory.mktemp("logs"), worker_args=SMALL, tls=certs) as cluster:
        yield cluster


def test_same_tokens_as_without(baton, tiny, cluster, logs):
    def answers(of):
        out = []
        for n in (1, 16, 33, 300):
            choice = of.complete([3 + i * 7 % 400 for i in range(n)], max_tokens=12, ignore_eos=True, temperature=0.8, seed=n)
            out.append((choice["token_ids"], choice["logits_hashes"]))
        return out

    with Cluster(baton, tiny, logs, worker_args=SMALL) as plain:
        assert answers(cluster) == answers(plain)


# ---- refused at the start ----

def refused_start(baton, args, word):
    run = subprocess.run([str(a) for a in [baton, *args]], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2, (run.returncode, run.stderr)
    lines = [line for line in run.stderr.splitlines() if '"level":"info"' not in line]
    assert len(lines) == 1 and word in lines[0], run.stderr


def named(certs, name):
    return ["--tls-cert", certs / f"{name}.pem", "--tls-key", certs / f"{name}-key.pem", "--tls-ca", certs / "ca.pem"]


def test_own_files_are_judged_at_the_start(baton, tiny, certs, foreign):
    issue(certs, "expired", "decode.baton", from_days=-3, to_days=-1)
    issue(certs, "early", "decode.baton", from_days=1, to_days=3)
    worker = ["decode", "--model", tiny, "--router", "127.0.0.1:1"]
    router = ["router", "--model", tiny, "--port", 0, "--registry-listen", "127.0.0.1:0"]
    refused_start(baton, [*worker, *named(certs, "expired")], "expired at ")
    refused_start(baton, [*worker, *named(certs, "early")], "is not valid before ")
    refused_start(baton, [*worker, *named(certs, "prefill")], "is for the role prefill, must be for decode")
    refused_start(baton, [*router, *named(certs, "prefill")], "is for the role prefill, must be for router")
    refused_start(baton, [*worker, *named(certs, "nobody")], "cannot be opened: No such file")
    refused_start(baton, [*worker, "--tls-cert", certs / "decode.pem", "--tls-key", certs / "prefill-key.pem", "--tls-ca",
                          certs / "ca.pem"], "does not belong to tls-cert")
    refused_start(baton, [*worker, "--tls-cert", certs / "decode.pem", "--tls-key", certs / "decode-key.pem", "--tls-ca",
                          foreign / "ca.pem"], "is not signed by a CA of")
    refused_start(baton, [*worker, "--tls-cert", certs / "decode.pem", "--tls-ca", certs / "ca.pem"], "tls-key is missing")
    refused_start(baton, ["router", "--model", tiny, "--port", 0, "--registry-listen", "0.0.0.0:0"], "--tls-cert")
    refused_start(baton, ["decode", "--model", tiny, "--router", "192.0.2.1:1"], "--tls-cert")


# ---- refused by the peer ----

def log_of(process):
    """All of it, as it would be read on a terminal."""
    return process.log_path.read_text(errors="replace").replace('\\"', '"')


def wait_for_line(process, word):
    Cluster.wait_for(lambda: word in log_of(process), f"{process.name} says: {word}", WAIT_S)


def stranger(cluster, name, args):
    process = Process(name, [cluster.baton, "decode", "--name", name, "--model", cluster.model, "--router", cluster.registry,
                             *SMALL, *args], cluster.log_dir, None)
    cluster.workers[name] = process
    return process


def gone(cluster, process):
    """It was never let in, and ends when told to."""
    assert process.ready is None and process.process.poll() is None
    assert process.name not in [w["name"] for w in cluster.json("/debug/workers")["workers"]]
    assert process.stop() == 0
    del cluster.workers[process.name]


def test_a_worker_of_another_authority_is_not_let_in(cluster, certs, foreign):
    process = stranger(cluster, "foreign", tls_args(foreign, "decode"))
    wait_for_line(process, "is not signed by a CA of")
    gone(cluster, process)
    # One that trusts our router, so that it is the router who refuses.
    (foreign / "both.pem").write_bytes((foreign / "ca.pem").read_bytes() + (certs / "ca.pem").read_bytes())
    process = stranger(cluster, "trusting", [*tls_args(foreign, "decode")[:4], "--tls-ca", foreign / "both.pem"])
    wait_for_line(process, "the router closed the connection; where it refuses this worker's certificate, its log says why")
    wait_for_line(cluster.router, "a connection to the registry was refused: the peer's certificate (\"baton decode worker\") "
                                  "is not signed by a CA of")
    gone(cluster, process)


def test_a_worker_without_tls_is_not_let_in(cluster):
    process = stranger(cluster, "plain", [])
    wait_for_line(process, "the router closed the connection; it may want TLS (--tls-cert, --tls-key, --tls-ca)")
    wait_for_line(cluster.router, "a TLS handshake failed: the peer does not speak TLS")
    gone(cluster, process)


def test_a_router_without_tls_is_not_taken(baton, tiny, certs, logs):
    with Cluster(baton, tiny, logs, prefill=0, decode=0) as plain:
        process = stranger(plain, "careful", tls_args(certs, "decode"))
        wait_for_line(process, "the peer does not speak TLS")
        gone(plain, process)


def last_bytes(host, port, context, said=b""):
    """What comes back on a connection until its end; the words of a failed handshake where it fails."""
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as plain:
        try:
            with context.wrap_socket(plain) if context else plain as end:
                end.sendall(said)
                return end.recv(4096)
        except (ssl.SSLError, ConnectionError) as error:
            return str(error)


def test_strangers_at_the_ports(cluster, certs, foreign):
    issue(certs, "late", "prefill.baton", from_days=-3, to_days=-1)
    decode = cluster.workers["decode-0"]
    registry, link = cluster.registry.rsplit(":", 1), decode.ready["link"].rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    # (certificate, what the router logs, what the decode worker logs)
    for name, at_registry, at_link in (
            (None, "the peer showed no certificate", "the peer showed no certificate"),
            ("late", "(\"late\") expired at ", "(\"late\") expired at "),
            ("router", "is for the role router, must be for prefill or decode", "is for the role router, must be for prefill")):
        for address, said, process, line in ((registry, preface, cluster.router, at_registry),
                                             (link, b"BTKV" * 12, decode, at_link)):
            answer = last_bytes(*address, client_context(certs, name, ["h2"]), said)
            assert isinstance(answer, str) or answer == b"", answer  # an alert or the end, and no byte of ours
            wait_for_line(process, line)
    last_bytes(*link, None, b"BTKV" * 12)
    wait_for_line(decode, "the peer does not speak TLS")
    assert len(cluster.complete([5, 6, 7], max_tokens=3, ignore_eos=True)["token_ids"]) == 3


# ---- new certificates ----

def serial_at(address):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as plain:
        with client_context(alpn=["h2"]).wrap_socket(plain) as end:
            return x509.load_der_x509_certificate(end.getpeercert(True)).serial_number


def test_certificates_change_under_load(baton, tiny, tmp_path):
    certs = make_certs(baton, tmp_path / "certs")
    with Cluster(baton, tiny, tmp_path, prefill=2, worker_args=SMALL, tls=certs) as cluster:
        link = cluster.workers["decode-0"].ready["link"]
        stop, done, failed = threading.Event(), [], []

        def ask(i):
            while not stop.is_set():
                try:
                    choice = cluster.complete([3 + (i * 31 + j) % 400 for j in range(40)], max_tokens=60, ignore_eos=True)
                    assert len(choice["token_ids"]) == 60
                    done.append(i)
                except Exception as error:  # noqa: BLE001: every kind of failure is one
                    failed.append(error)
                    return

        with ThreadPoolExecutor(20) as pool:
            try:
                for i in range(20):
                    pool.submit(ask, i)
                cluster.wait_for(lambda: len(done) > 20 or failed, "streams run")
                old = serial_of(certs / "router.pem")
                make_certs(baton, certs, "--renew")
                assert serial_of(certs / "router.pem") != old
                for process in cluster.processes():
                    process.process.send_signal(signal.SIGHUP)
                cluster.wait_for(lambda: serial_at(cluster.registry) == serial_of(certs / "router.pem"), "the router shows its new certificate")
                cluster.wait_for(lambda: serial_at(link) == serial_of(certs / "decode.pem"), "the decode worker shows its new certificate")
                # A worker that attaches and dials its link under the new ones, among streams of the old ones.
                cluster.start_worker("prefill", "prefill-2").wait_ready()
                n = len(done)
                cluster.wait_for(lambda: len(done) > n + 20 or failed, "streams go on")
                # A bad file changes nothing.
                good = serial_of(certs / "router.pem")
                (certs / "router.pem").write_text("half a fil")
                cluster.router.process.send_signal(signal.SIGHUP)
                wait_for_line(cluster.router, "the registry's certificate stays as it was: tls-cert")
                assert serial_at(cluster.registry) == good
                cluster.start_worker("prefill", "prefill-3").wait_ready()
                n = len(done)
                cluster.wait_for(lambda: len(done) > n + 20 or failed, "streams go on")
            finally:
                stop.set()
        assert not failed, failed[0]
        for process in cluster.processes():
            assert "SIGHUP: the " in log_of(process) or process.name in ("prefill-2", "prefill-3")


def test_up_takes_the_directory_of_certs(baton, tiny, certs, tmp_path):
    up = Process("up", [baton, "up", "--model", tiny, "--port", 0, "--threads", 1, "--kv-tokens", 2048, "--tls", certs], tmp_path)
    try:
        Cluster.wait_for(lambda: up.process.poll() is not None or any("Serving http" in line for line in list(up.lines.queue) if line),
                         "the cluster serves")
        assert log_of(up).count("a worker attaches") == 2
        up.process.send_signal(signal.SIGHUP)  # goes to all
        Cluster.wait_for(lambda: log_of(up).count("certificate was read again from") == 3, "three files were read again")
        assert up.stop() == 0
    finally:
        if up.process.poll() is None:
            up.stop()


# ---- baton certs ----

def test_certs_are_made_once_and_keys_are_private(baton, tmp_path):
    certs = make_certs(baton, tmp_path / "certs", "--host", "llm.example.com,192.0.2.7", "--days", "30")
    assert sorted(p.name for p in certs.iterdir()) == sorted(
        f"{name}{kind}.pem" for name in ("ca", "router", "prefill", "decode", "http") for kind in ("", "-key"))
    for path in certs.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.name.endswith("-key.pem") else 0o644)
    http = x509.load_pem_x509_certificate((certs / "http.pem").read_bytes())
    names = http.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "llm.example.com"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "192.0.2.7"]
    assert 30 <= (http.not_valid_after_utc - http.not_valid_before_utc).days <= 31
    before = {path.name: path.read_bytes() for path in certs.iterdir()}
    again = subprocess.run([baton, "certs", certs], capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and "exists and is not overwritten" in again.stderr
    assert before == {path.name: path.read_bytes() for path in certs.iterdir()}
    make_certs(baton, certs, "--renew")
    changed = {path.name for path in certs.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == set(before) - {"ca.pem", "ca-key.pem"}
    bad = subprocess.run([baton, "certs", tmp_path / "other", "--host", "a b"], capture_output=True, text=True, timeout=60)
    assert bad.returncode == 2 and "\"a b\" is no IP address and no host name" in bad.stderr
