"""The live page at / and its /debug/stats: headers, fields, and what a browser shows while a cluster lives and dies."""
import base64
import hashlib
import itertools
import re
import subprocess

import browser
import pytest
from cluster import Cluster
from front import front

needs_browser = pytest.mark.skipif(not browser.find(), reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def cluster(baton, tiny, tmp_path_factory):
    with Cluster(baton, tiny, tmp_path_factory.mktemp("logs")) as cluster:
        yield cluster


def page(cluster):
    status, headers, body = cluster.get("/")
    assert status == 200
    return {k.lower(): v for k, v in headers.items()}, body.decode()


def inside(text, tag):
    (found,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
    return found


def test_headers_and_size(cluster):
    """One small file that needs nothing from elsewhere and may run nothing but what is in it."""
    headers, text = page(cluster)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(inside(text, tag).encode()).digest()).decode()
        assert policy[tag + "-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert len(text.encode()) < 40000
    assert set(re.findall(r"\w+://[^'\"\s]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)=", text)


def test_every_field_that_the_page_names(cluster):
    """What its script reads of each kind of object is there."""
    cluster.complete("once upon a time", max_tokens=4, ignore_eos=True)
    script = inside(page(cluster)[1], "script")
    stats = cluster.json("/debug/stats")
    records = cluster.json("/debug/requests?limit=50")["requests"]
    objects = {"s": [stats], "w": stats["prefill"] + stats["decode"], "q": [stats["ttft_ms"], stats["itl_ms"]], "r": records,
               "p": [w["pages"] for w in stats["prefill"] + stats["decode"]]}
    for name, found in objects.items():
        fields = set(re.findall(rf"(?<![\w.$]){name}\.(\w+)", script)) - {"stages"}
        assert found and (len(fields) >= 3 or name == "p"), (name, fields)
        for one in found:
            assert fields <= set(one), (name, fields - set(one))
    # And it knows each stage by its name.
    known = set(re.findall(r'\["(\w+)", "[\w ]+", "\w+", "[\w ]+"\]', script))
    for record in records:
        assert {k.removesuffix("_ms") for k in record["stages"]} - {"total"} == known


def test_stats_add_up(cluster):
    before = cluster.json("/debug/stats")
    for i in range(3):
        cluster.complete([7 + i] * 40, max_tokens=8, ignore_eos=True)
    after = cluster.json("/debug/stats")
    assert after["ended_ok"] - before["ended_ok"] == 3
    assert after["ttft_ms"]["n"] - before["ttft_ms"]["n"] == 3
    assert after["itl_ms"]["n"] - before["itl_ms"]["n"] == 21
    assert after["ttft_ms"]["p50"] > 0  # tokens that come together have no time between them
    for q in (after["ttft_ms"], after["itl_ms"]):
        assert 0 <= q["p50"] <= q["p95"] <= q["p99"] < 60000
    assert after["ready"] and not after["draining"] and after["registry"] == cluster.registry
    assert [w["name"] for w in after["prefill"]] == ["prefill-0"] and [w["name"] for w in after["decode"]] == ["decode-0"]
    for w in after["prefill"] + after["decode"]:
        p = w["pages"]
        assert p["active"] + p["cached"] + p["free"] == p["total"] > 0
        assert sum(p[k] for k in ("free", "cached", "reserved", "filling", "armed", "landed", "live", "quarantined")) == p["total"]
    # Rates are over whole seconds, so the tokens show in them once theirs has passed.
    cluster.wait_for(lambda: cluster.json("/debug/stats")["tokens_per_s"] > 0, "the tokens show as a rate")
    prompts = itertools.count(100)

    def transfers_show():
        cluster.complete([next(prompts)] * 40, max_tokens=1)
        stats = cluster.json("/debug/stats")
        return stats["prefill"][0]["link_bytes_per_s"] > 0 and stats["decode"][0]["link_bytes_per_s"] > 0
    cluster.wait_for(transfers_show, "transfers show as a rate")


@needs_browser
def test_in_a_browser(cluster, tmp_path):
    """Both pools, a finished request, a streamed answer; nothing that the policy had to block."""
    cluster.complete("once upon a time", max_tokens=8, ignore_eos=True)
    with browser.Browser(tmp_path) as tab:
        tab.open(cluster.url)
        tab.wait("document.querySelectorAll('#rows tr').length > 0", "a request is listed")
        text = tab.text()
        for words in ("prefill-0", "decode-0", "serving", "Time to first token", "KV pages", "decode worker"):
            assert words in text, (words, text)
        assert tab.run("document.querySelectorAll('#path li').length") >= 3
        assert tab.run("[...document.querySelectorAll('#prefill .bar, #decode .bar, #rows .bar')].every(b => b.ariaLabel || b.getAttribute('aria-label'))")
        tab.run("$('ask').value = 'hello'; $('askform').requestSubmit()")
        tab.wait("/first token .* tokens/.test($('times').textContent) && !asking", "an answer has streamed")
        assert tab.run("$('answer').textContent.length") > 0
        for width in (390, 1280):
            tab.resize(width, 844)
            assert tab.run("document.documentElement.scrollWidth") <= width
        assert not [line for line in tab.said if "Content" in line and "Policy" in line], tab.said
        assert not tab.said, tab.said
        # The policy is at work, and this test would notice: what is not the page's own is blocked.
        tab.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
        assert tab.run("window.ran") is None
        assert [line for line in tab.said if "Content Security Policy" in line or "ContentSecurityPolicy" in line], tab.said


@needs_browser
def test_with_api_keys(baton, tiny, logs, tmp_path):
    """From this machine the page is open and asking needs a key; from elsewhere an operator's key opens both."""
    file = tmp_path / "keys"
    keys = {name: subprocess.run([baton, "keys", "add", name, "--file", file, *flags], check=True, capture_output=True,
                                 text=True).stdout.split()[-1] for name, flags in [("alice", []), ("root", ["--operator"])]}
    with front(baton, tiny, logs, router_args=["--api-key-file", file]) as cluster, browser.Browser(tmp_path) as tab:
        def give(key):
            tab.run(f"$('key').value = '{key}'; $('keyform').requestSubmit()")
        tab.open(cluster.url)
        tab.wait("$('state').textContent == 'serving'", "a local page is served without a key")
        tab.run("$('askform').requestSubmit()")
        tab.wait("!$('keyform').hidden && !asking && $('answer').textContent != ''", "asking asks for a key")
        give(keys["alice"])
        tab.run("$('askform').requestSubmit()")
        tab.wait("/first token .* tokens/.test($('times').textContent) && !asking", "an answer has streamed")
        assert tab.run("$('keyform').hidden")
        # What came through a proxy is not local.
        tab.call("Network.setExtraHTTPHeaders", headers={"X-Forwarded-For": "192.0.2.1"})
        tab.wait("$('state').textContent == 'key needed' && $('notice').textContent.includes('operator')", "an operator's is asked for")
        give("wrong")
        tab.wait("$('notice').textContent.includes('does not know this key')", "a wrong key is refused")
        give(keys["root"])
        tab.wait("$('state').textContent == 'serving' && $('keyform').hidden && $('notice').hidden", "the operator's key opens it")
        assert tab.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        tab.open(cluster.url)
        tab.wait("$('state').textContent == 'key needed'", "a reload has forgotten it")


@needs_browser
def test_what_comes_and_goes(baton, tiny, logs, tmp_path):
    """No worker, then workers, one that dies, a router that is gone and comes back."""
    with Cluster(baton, tiny, logs, prefill=0, decode=0, disaggregate="auto") as cluster, browser.Browser(tmp_path) as tab:
        tab.open(cluster.url)
        tab.wait("document.querySelectorAll('.none').length == 2", "both pools say that they are empty")
        assert f"baton prefill --model FILE --router {cluster.registry}" in tab.text()
        assert f"baton decode --model FILE --router {cluster.registry}" in tab.text()
        assert "curl " + cluster.url in tab.text()
        for role in ("prefill", "decode"):
            cluster.start_worker(role, role + "-0").wait_ready()
        tab.wait("$('state').textContent == 'serving'", "the workers are noticed")
        cluster.workers["prefill-0"].kill()
        tab.wait("!!document.querySelector('#prefill .none')", "the dead worker is gone from its pool")
        assert "decode-0" in tab.text()
        cluster.router.kill()
        tab.wait("$('state').textContent == 'no contact'", "the loss of the router is shown")
        assert "No contact with the router" in tab.text() and tab.run("document.body.classList.contains('stale')")
        cluster.router_args += ["--port", cluster.port, "--grpc-port", 0]
        cluster.start_router()
        tab.wait("$('notice').textContent.startsWith('The router was restarted')", "the new router is noticed")
        assert "No decode worker is attached" in tab.text() and not tab.run("document.body.classList.contains('stale')")
