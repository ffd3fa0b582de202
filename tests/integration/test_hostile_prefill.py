"""A prefill worker that lies: what it sends is refused and counted, and nobody's tokens change."""
import queue
import random
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster
from hostile_prefill import (Attached, CONTROL, FRAME, Layout, Link, hash64, kv, learn_join, new_id, page_of, registry,
                             send_all)

ARGS = ["--kv-tokens", 4096, "--threads", 1]
N_TOKENS = 12
VICTIMS = [[7 + k + i % 300 for i in range(75)] for k in range(8)]  # five pages each, the last one not full
VICTIM = VICTIMS[0]


def neighbour(i):
    rng = random.Random(i)
    return [rng.randrange(3, 500) for _ in range(rng.randrange(20, 200))]


NEIGHBOURS = [neighbour(i) for i in range(24)]


def ask(cluster, tokens):
    choice = cluster.complete(tokens, max_tokens=N_TOKENS, ignore_eos=True, temperature=0)
    return choice["token_ids"], choice["logits_hashes"]


def worker(cluster, name):
    (found,) = [w for w in cluster.json("/debug/workers")["workers"] if w["name"] == name and w["state"] == "up"]
    return found


def refused(cluster):
    return worker(cluster, "decode-0")["refused_frames"]


def flush(cluster):
    cluster.request("POST", "/debug/flush", {})
    cluster.wait_for(lambda: all(w["pages"]["cached"] == 0 for w in cluster.json("/debug/workers")["workers"]
                                 if w["state"] == "up" and w["name"] != "hostile"), "the caches are empty")


class Setting:
    """One prefill and one decode worker that are honest, what they answer when alone, and how to join them."""

    def __init__(self, cluster, join):
        self.cluster, self.join, self.layout = cluster, join, Layout(join.fingerprint)
        self.decode = worker(cluster, "decode-0")
        value = int(self.decode["incarnation"], 16)
        self.decode_id = registry.Id(hi=value >> 64, lo=value & (1 << 64) - 1)
        self.expected = {str(p): ask(cluster, p) for p in [*VICTIMS, *NEIGHBOURS]}

    def dial(self):
        return Link(self.decode["link"])

    def link(self, incarnation=None):
        """A link that is up."""
        link = self.dial().join(self.decode_id, self.layout, incarnation or new_id())
        link.up()
        return link

    def check(self, prompt):
        assert ask(self.cluster, prompt) == self.expected[str(prompt)], f"prompt of {len(prompt)} tokens"

    def neighbours(self):
        """Streams that must not notice; they run until .result() of the pair that is returned."""
        done = threading.Event()

        def run():
            rounds = 0
            while not done.is_set() or rounds == 0:
                for prompt in NEIGHBOURS:
                    self.check(prompt)
                    if done.is_set():
                        break
                rounds += 1

        pool = ThreadPoolExecutor(1)
        future = pool.submit(run)
        return done, future


@pytest.fixture(scope="module")
def setting(baton, tiny, tmp_path_factory):
    logs = tmp_path_factory.mktemp("hostile")
    join = learn_join(baton, tiny, logs, ARGS)
    with Cluster(baton, tiny, logs, prefill=1, decode=1, worker_args=ARGS) as cluster:
        yield Setting(cluster, join)
        # Whatever was tried: no page is lost.
        flush(cluster)
        cluster.wait_for(lambda: worker(cluster, "decode-0")["pages"]["free"] ==
                         worker(cluster, "decode-0")["pages"]["total"], "every page is free")


# ---- with a ticket: each lie gets a real one from the router ----

def wrong_generation(s, link, work, grant):
    for generation in (grant.generation + 1, grant.generation - 1, 0, 2**64 - 1):
        link.send_frame(grant, 0, grant.pages_held, [page_of(s.layout, 0, 0)], generation=generation)
    return 4


def wrong_lease(s, link, work, grant):
    for lease in (grant.lease + 1, 2**32 - 1):
        link.send_frame(grant, 0, grant.pages_held, [page_of(s.layout, 0, 0)], lease=lease)
    return 2


def wrong_range(s, link, work, grant):
    page = page_of(s.layout, 0, 0)
    link.send_frame(grant, s.layout.layers, 0, [page])
    link.send_frame(grant, 1023, 0, [page])
    link.send_frame(grant, 0, grant.pages, [page])
    link.send_frame(grant, 0, grant.pages - 1, [page, page])
    link.send_frame(grant, 0, 65535, [page])
    return 5


def duplicate(s, link, work, grant):
    for _ in range(3):
        link.send_frame(grant, 0, 1, [page_of(s.layout, 0, 1)])
    return 2


def pieces_out_of_order(s, link, work, grant):
    page = page_of(s.layout, 0, 0)
    link.send_bytes(link.header(FRAME, len(page) - 64, lease=grant.lease, generation=grant.generation, n_pages=1,
                                offset=64) + struct.pack("<Q", hash64(page)) + page[64:])
    return 1


def forged_sum(s, link, work, grant):
    page = page_of(s.layout, 0, 0)
    link.send_frame(grant, 0, 0, [page], sums=[hash64(page) ^ 1])
    assert link.expect("aborted").reason == kv.REASON_CHECKSUM
    return 1


def swapped_pages(s, link, work, grant):
    a, b = page_of(s.layout, 0, 0), page_of(s.layout, 0, 1)
    link.send_frame(grant, 0, 0, [b, a], sums=[hash64(a), hash64(b)])
    assert link.expect("aborted").reason == kv.REASON_CHECKSUM
    return 1


def swapped_manifest(s, link, work, grant):
    """Two pages have changed places with their sums: each verifies, all together do not."""
    sums = send_all(link, s.layout, grant)
    sums[0, 0], sums[1, 0] = sums[1, 0], sums[0, 0]
    link.commit(work, s.layout, grant, sums)
    assert link.expect("aborted").reason == kv.REASON_CHECKSUM
    return 1


def incomplete(s, link, work, grant):
    sums = send_all(link, s.layout, grant, skip={(grant.pages - 1, s.layout.layers - 1)})
    link.commit(work, s.layout, grant, sums)
    assert link.expect("aborted").reason == kv.REASON_INCOMPLETE
    return 1


def another_prompt(s, link, work, grant):
    sums = send_all(link, s.layout, grant)
    link.commit(work, s.layout, grant, sums, chain=new_id())
    assert link.expect("aborted").reason == kv.REASON_PROMPT
    return 1


def another_layout(s, link, work, grant):
    sums = send_all(link, s.layout, grant)
    link.commit(work, s.layout, grant, sums, fingerprint_hash=s.layout.hash ^ 1)
    assert link.expect("aborted").reason == kv.REASON_LAYOUT
    return 1


def another_generation_in_commit(s, link, work, grant):
    sums = send_all(link, s.layout, grant)
    link.commit(work, s.layout, grant, sums, generation=grant.generation + 1)
    assert link.expect("aborted").reason == kv.REASON_UNKNOWN
    return 1


def late(s, link, work, grant):
    """Frames and a commit for a lease that has ended."""
    link.commit(work, s.layout, grant, {})
    assert link.expect("aborted").reason == kv.REASON_INCOMPLETE
    sums = send_all(link, s.layout, grant)
    link.commit(work, s.layout, grant, sums)
    link.expect("aborted")
    link.hello(work, s.layout)
    link.expect("hello_refused")
    return 1 + len(sums) + 1


def withdrawn_then_frames(s, link, work, grant):
    link.say(withdrawn=kv.Withdrawn(ticket=work.ticket, reason=kv.REASON_CANCELLED))
    return len(send_all(link, s.layout, grant))


def from_another_link(s, link, work, grant):
    """Lease and generation are right, the connection is not the one they were granted to."""
    other = s.link()
    n = len(send_all(other, s.layout, grant))
    other.hello(work, s.layout)
    other.expect("hello_refused")
    other.commit(work, s.layout, grant, {})
    assert other.expect("aborted").reason == kv.REASON_UNKNOWN
    other.say(withdrawn=kv.Withdrawn(ticket=work.ticket, reason=kv.REASON_CANCELLED))
    # The lease is still the first link's: its own frame lands and its lie is refused.
    link.send_frame(grant, 0, 0, [page_of(s.layout, 0, 0)])
    link.send_frame(grant, 0, 0, [page_of(s.layout, 0, 0)])
    other.close()
    return n + 4


def cut_in_mid_frame(s, link, work, grant):
    data = link.frame(grant, 0, 0, [page_of(s.layout, 0, 0)])
    link.send_bytes(data[:-100])
    link.close()
    return 0


GRANTED = [wrong_generation, wrong_lease, wrong_range, duplicate, pieces_out_of_order, forged_sum, swapped_pages,
           swapped_manifest, incomplete, another_prompt, another_layout, another_generation_in_commit, late,
           withdrawn_then_frames, from_another_link, cut_in_mid_frame]


def find_victim(s, attached, pool):
    """A request that the router gives to the hostile worker. The router may pass it over: for a second after a link was
    lost it avoids the pair."""
    for prompt in VICTIMS:
        victim = pool.submit(s.check, prompt)
        try:
            work = attached.works.get(timeout=2)
        except queue.Empty:
            victim.result(timeout=60)
            continue
        assert list(work.tokens) == prompt
        return victim, work
    raise AssertionError("the hostile worker was given nothing")


def attack(setting, lie):
    """The victim's request goes to the hostile worker, which lies and leaves; the router goes on without it."""
    s, cluster = setting, setting.cluster
    flush(cluster)
    attached = Attached(cluster.registry, s.join)
    link = s.link(attached.join.incarnation)
    attached.claim(*VICTIMS)
    cluster.wait_for(lambda: worker(cluster, "hostile")["running"] == attached.marker, "the router believes the claim")
    before = refused(cluster)
    done, neighbours = s.neighbours()
    try:
        with ThreadPoolExecutor(1) as pool:
            victim, work = find_victim(s, attached, pool)
            n = lie(s, link, work)
            cluster.wait_for(lambda: refused(cluster) >= before + n, f"{n} refusals are counted")
            attached.leave()
            link.close()
            victim.result(timeout=60)
    finally:
        attached.leave()
        link.close()
        done.set()
    neighbours.result(timeout=60)


@pytest.mark.parametrize("lie", GRANTED, ids=lambda f: f.__name__)
def test_with_a_grant(setting, lie):
    def granted(s, link, work):
        link.hello(work, s.layout)
        return lie(s, link, work, link.expect("grant"))

    attack(setting, granted)


def test_hello_for_another_prompt(setting):
    def lie(s, link, work):
        link.hello(work, s.layout, chain=new_id())
        assert link.expect("hello_refused").reason == kv.REASON_PROMPT
        return 1

    attack(setting, lie)


def test_ticket_of_another_worker(setting):
    """The ticket is real, the incarnation that shows it is not the one it was given to."""
    def lie(s, link, work):
        thief = s.link()
        thief.hello(work, s.layout)
        assert thief.expect("hello_refused").reason == kv.REASON_UNKNOWN
        thief.close()
        return 1

    attack(setting, lie)


# ---- without a ticket ----

def test_unknown_tickets(setting):
    s, cluster = setting, setting.cluster
    before = refused(cluster)
    link = s.link()
    work = registry.Work(ticket=new_id(), tokens=VICTIM)
    link.commit(work, s.layout, kv.Grant(lease=0, generation=1), {})
    assert link.expect("aborted").reason == kv.REASON_UNKNOWN
    link.say(withdrawn=kv.Withdrawn(ticket=new_id(), reason=kv.REASON_CANCELLED))
    link.hello(work, s.layout)  # kept for 3 s, in case its Reserve is slower
    assert link.expect("hello_refused").reason == kv.REASON_UNKNOWN
    cluster.wait_for(lambda: refused(cluster) >= before + 2, "both are counted")
    assert link.is_open
    link.close()


def test_a_storm_of_guessed_leases(setting):
    """Frames for every lease that a neighbour may have just now."""
    s, cluster = setting, setting.cluster
    before = refused(cluster)
    link = s.link()
    flush(cluster)
    done, neighbours = s.neighbours()
    page = page_of(s.layout, 0, 0, salt=9)
    n = 0
    for generation in range(1, 400):
        for lease in range(4):
            grant = kv.Grant(lease=lease, generation=generation)
            assert link.send_frame(grant, n % s.layout.layers, n % 4, [page])
            n += 1
    cluster.wait_for(lambda: refused(cluster) >= before + n, "every frame is refused")
    done.set()
    neighbours.result(timeout=120)
    assert link.is_open
    link.close()


def test_joins_that_cannot_be(setting):
    s = setting
    rows = [({"layout": s.layout.with_field("head_dim", s.layout.head_dim * 2)}, "head_dim"),
            ({"layout": s.layout.with_field("profile", 4 - s.layout.profile)}, "profile"),
            ({"layout": s.layout.with_field("model_hash", s.layout.model_hash ^ 1)}, "model_hash"),
            ({"layout": s.layout.with_field("kv_heads", 0)}, "n_kv_heads"),
            ({"peer": new_id()}, "it has started again"),
            ({"protocol": (2, 3)}, "link protocol 2 to 3"),
            ({"name": "a\nb"}, "control character"),
            ({"incarnation": registry.Id()}, "join.incarnation is 0")]
    for change, text in rows:
        link = s.dial()
        link.join(**{"peer": s.decode_id, "layout": s.layout, "incarnation": new_id(), **change})
        reason = link.expect("refused").reason
        assert text in reason, (text, reason)
        link.expect("closed")
        link.close()


def breaches(s):
    """(name, bytes) that no peer may send on a link that is up."""
    ping = Link.control(ping=kv.Ping())
    page = page_of(s.layout, 0, 0)
    grant = kv.Grant(lease=0, generation=1)
    frame = Link.frame(grant, 0, 0, [page])
    n = len(page)
    yield "garbage", bytes(range(48))
    yield "another magic", Link.header(CONTROL, 2, magic=0x564B5443)
    yield "a header bit", bytes([frame[0], *frame[1:20], frame[20] ^ 1, *frame[21:]])
    yield "a payload bit", ping[:-1] + bytes([ping[-1] ^ 1])
    yield "type 3", Link.header(3, 2)
    yield "control of 0 bytes", Link.header(CONTROL, 0)
    yield "control of 65537 bytes", Link.header(CONTROL, 65537)
    yield "no pages", Link.header(FRAME, n, generation=1)
    yield "65 pages", Link.header(FRAME, 65 * n, generation=1, n_pages=65)
    yield "another length", Link.header(FRAME, 2 * n - 1, generation=1, n_pages=2)
    yield "behind the page", Link.header(FRAME, n, generation=1, n_pages=1, offset=1)
    yield "behind the last page", Link.header(FRAME, n, generation=1, n_pages=1, first_page=65536)
    yield "layer 1024", Link.header(FRAME, n, generation=1, n_pages=1, layer=1024)
    yield "a grant", Link.control(grant=kv.Grant(ticket=new_id(), pages=1))
    yield "a second join", Link.control(join=kv.LinkJoin(name="x", incarnation=new_id(), peer=s.decode_id,
                                                         protocol_min=1, protocol_max=1, fingerprint=s.layout.bytes))
    yield "hello of 0 tokens", Link.control(hello=kv.Hello(ticket=new_id()))
    yield "hello without ticket", Link.control(hello=kv.Hello(n_tokens=5))
    yield "commit of token 2^31", Link.control(commit=kv.Commit(ticket=new_id(), token=1 << 31))
    yield "commit of a logprob that is no number", Link.control(commit=kv.Commit(
        ticket=new_id(), logprobs=registry.Logprobs(shown=[1], own=[float("nan")])))
    yield "commit of 21 likeliest tokens", Link.control(commit=kv.Commit(ticket=new_id(), logprobs=registry.Logprobs(
        shown=[22], own=[-1], top_token=range(21), top=[-1] * 21)))
    yield "withdrawn without reason", Link.control(withdrawn=kv.Withdrawn(ticket=new_id()))


def test_breaches_close_the_link(setting):
    s, cluster = setting, setting.cluster
    before = refused(cluster)
    witness = s.link()
    done, neighbours = s.neighbours()
    n = 0
    for name, data in breaches(s):
        link = s.link()
        link.send_bytes(data)
        link.expect("closed")
        link.close()
        n += 1
    # Before the first exchange, too.
    for data in (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", Link.control(ping=kv.Ping())):
        link = s.dial()
        link.send_bytes(data)
        link.expect("refused")
        link.expect("closed")
        link.close()
        n += 1
    cluster.wait_for(lambda: refused(cluster) >= before + n, f"{n} breaches are counted")
    done.set()
    neighbours.result(timeout=120)
    assert witness.is_open
    witness.close()


def test_the_counter_is_exported(setting):
    cluster = setting.cluster
    (value,) = [v for k, v in cluster.metrics().items()
                if k.startswith("baton_link_refused_total") and 'worker="decode-0"' in k]
    assert value == refused(cluster)
