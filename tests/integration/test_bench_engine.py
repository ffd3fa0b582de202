"""The engine bench's own arithmetic: limits, merging, tables, the picture, peers that cannot be had; nothing here depends on speed."""
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import engines  # noqa: E402
import limits  # noqa: E402
import machine  # noqa: E402
import peers  # noqa: E402
import picture  # noqa: E402
import report  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
ROW_KEYS = {"row", "engine", "threads", "median", "min", "max", "unit", "n", "limit"}
# 2 layers, 4 heads of 8, 2 KV heads; round numbers so that limits can be checked by hand.
MODEL = limits.Model(layers=2, heads=4, kv_heads=2, head_dim=8, weight_bytes=1000, block_ops=7200, head_ops=720)
MACHINE = limits.Machine(read=1e6, int8=1e6, bf16=256e3)


def tool(baton, name):
    path = baton.parent / "tests" / "bench" / name
    assert path.is_file(), f"{path} is not built"
    return path


def row(name, engine, median, limit=1000, threads=2, unit="tokens/s"):
    return {"row": name, "engine": engine, "threads": threads, "median": median, "min": median, "max": median, "unit": unit, "n": 1,
            "limit": limit}


# ---- limits ----

def test_sizes_are_those_that_inspect_shows(baton, tiny):
    model = limits.read_model(tiny)
    shown = subprocess.run([baton, "inspect", tiny], check=True, capture_output=True, text=True).stdout

    def figure(name):
        return int(re.search(rf"^\s+{name}\s+(\d+)", shown, re.M).group(1))
    assert (model.layers, model.heads, model.kv_heads, model.head_dim) == \
        (figure("layers"), figure("attention heads"), figure("KV heads"), figure("head size"))
    assert limits.kv_bytes(model) == figure("KV cache, bf16")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        limits.read_model(tmp_path / "model")


def test_prefill_is_bound_by_products_with_group_scales_and_attention():
    # 10 tokens: (10 x 7,200 + 720) / 720e3 s, and 10 x 256 x 5.5 / 256e3 s of attention.
    assert limits.prefill_limit(MODEL, MACHINE, 10) == pytest.approx(10 / (0.101 + 0.055))
    assert limits.prefill_limit(MODEL, MACHINE, 10, "bf16") == pytest.approx(10 / (72720 / 256e3 + 0.055))


def test_decode_is_bound_by_the_bytes_of_weights_and_cache():
    assert limits.kv_bytes(MODEL) == 128
    assert limits.decode_limit(MODEL, MACHINE._replace(int8=1e12, bf16=1e12), 1, 10) == pytest.approx(1e6 / (1000 + 10 * 128))
    assert limits.decode_limit(MODEL, MACHINE._replace(int8=1e12, bf16=1e12), 1, 10, kv=64) == pytest.approx(1e6 / (1000 + 10 * 64))


def test_batches_are_bound_by_memory_then_by_arithmetic():
    of = [limits.decode_limit(MODEL, MACHINE._replace(read=1e4), n, 1) for n in (1, 2)]
    assert of == pytest.approx([1e4 / 1128, 2e4 / 1256])
    arithmetic = 1 / (7920 / 720e3 + 256 / 256e3)
    assert limits.decode_limit(MODEL, MACHINE, 64, 1) == pytest.approx(arithmetic)


@pytest.mark.parametrize("lacking", ["int8", "bf16"])
def test_no_limit_is_invented_for_a_cpu_that_lacks_an_instruction(lacking):
    less = MACHINE._replace(**{lacking: None})
    assert limits.prefill_limit(MODEL, less, 10) is None
    assert limits.decode_limit(MODEL, less, 64, 10) == pytest.approx(64e6 / (1000 + 640 * 128))


def test_the_machine_is_taken_at_its_median():
    samples = {("limit_read", 2): [30, 40, 35], ("limit_int8", 2): [900, 920], ("limit_int8", 1): [460]}
    assert limits.machine_from(samples, 2) == limits.Machine(read=35e9, int8=910e9, bf16=None)


def test_depth_is_the_mean_of_the_timed_tokens():
    depth = {(r.name, r.threads): limits.mean_depth(r) for r in limits.ROWS if r.kind != "prefill"}
    assert depth["decode_d0", 2] == 64 and depth["decode_d2048", 2] == 2080 and depth["batch_16", 2] == 160


def test_the_program_measures_what_the_cpu_has(baton):
    done = subprocess.run([tool(baton, "machine_limits"), "1", "1"], check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["row"] for r in rows] == ["limit_read", "limit_int8", "limit_bf16"]
    assert all(r["samples"] is None or r["samples"][0] > 0 for r in rows) and rows[0]["samples"]
    assert subprocess.run([tool(baton, "machine_limits"), "1", "0"], capture_output=True).returncode == 2


# ---- rounds ----

def test_another_engine_begins_in_each_round():
    names = [[e.name for e in engines.tasks(limits.ROWS[1], engines.OURS + engines.PEERS, i)] for i in range(4)]
    assert {n[0] for n in names} == {"baton", "baton-bf16", "llama.cpp", "openvino"} and all(sorted(n) == sorted(names[0]) for n in names)


def test_a_peers_slow_setting_is_left_out_after_the_first_round():
    assert engines.kept_settings({"fa_off": [100], "fa_on": [89]}) == ["fa_off"]
    assert engines.kept_settings({"fa_off": [100], "fa_on": [95]}) == ["fa_off", "fa_on"]
    assert engines.best_setting({"fa_off": [100, 1, 100], "fa_on": [99, 99, 99]}) == "fa_off"


def test_time_left_is_told_from_what_the_same_took_before(capsys):
    plan = [("baton", "prefill_128", 2), ("baton", "decode_d4096", 2)]
    progress = engines.Progress(plan * 2)
    progress.done(plan[0], 2, "a")
    progress.done(plan[1], 10, "b")
    assert progress.seconds_left() == 12 and "b; about 0 min 12 s left" in capsys.readouterr().err


def fake_tools(folder):
    """The two programs, as shell scripts that answer at once."""
    (folder / "machine_limits").write_text("""#!/bin/sh
for threads in 1 2; do
    echo "{\\"row\\": \\"limit_read\\", \\"by\\": \\"loads\\", \\"threads\\": $threads, \\"samples\\": [10]}"
    echo "{\\"row\\": \\"limit_int8\\", \\"by\\": \\"sums\\", \\"threads\\": $threads, \\"samples\\": [100]}"
    echo "{\\"row\\": \\"limit_bf16\\", \\"by\\": null, \\"threads\\": $threads, \\"samples\\": null}"
done
""")
    (folder / "bench_engine").write_text("""#!/bin/sh
echo "{\\"row\\": \\"$5\\", \\"engine\\": \\"$4\\", \\"kv_bytes\\": 10, \\"setting\\": \\"k\\", \\"samples\\": [$2, 3]}"
""")
    for name in ("machine_limits", "bench_engine"):
        (folder / name).chmod(0o755)


def test_a_run_without_peers(tiny, tmp_path, capsys):
    fake_tools(tmp_path)
    bench = engines.Bench(str(tiny), tmp_path, 2, False).run()
    rows = report.merge(bench.rows())
    assert all(set(r) == ROW_KEYS for r in rows)
    ours = [r for r in rows if r["engine"] == "baton"]
    assert [(r["row"], r["threads"]) for r in ours] == [(r.name, r.threads) for r in limits.ROWS]
    assert all(r["n"] == 4 and r["max"] == 3 and r["min"] == r["threads"] for r in ours)
    assert [r["limit"] is None for r in ours] == [r.kind == "prefill" for r in limits.ROWS]  # no bf16, no limit of prefill
    assert bench.limits_by == {"limit_read": "loads", "limit_int8": "sums", "limit_bf16": None} and "--no-peers" in bench.missing[0]
    assert {r["row"] for r in rows if r["engine"] == "machine"} == {"limit_read", "limit_int8"}
    assert "0 min 00 s left" in capsys.readouterr().err.splitlines()[-1]


def test_a_tool_that_fails_ends_the_run(tiny, tmp_path):
    fake_tools(tmp_path)
    (tmp_path / "bench_engine").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(RuntimeError, match="bench_engine ended with 3"):
        engines.Bench(str(tiny), tmp_path, 1, False).run()


def test_a_run_that_is_ended_early_keeps_what_it_has(tiny, tmp_path, monkeypatch):
    def interrupted(bench, name, *words, run_tool=engines.Bench.run_tool):
        if name == "bench_engine" and words[-1] == at[0] and len(bench.limits["limit_read", 2]) > at[1]:
            raise KeyboardInterrupt
        return run_tool(bench, name, *words)
    fake_tools(tmp_path)
    monkeypatch.setattr(engines.Bench, "run_tool", interrupted)
    at = ("prefill_2048", 0)
    bench = engines.Bench(str(tiny), tmp_path, 3, False).run()
    assert {r["row"] for r in bench.rows() if r["engine"] != "machine"} == {"prefill_128", "prefill_512"}
    assert {key.split()[1] for key in bench.settings()} == {"prefill_128", "prefill_512"}
    at = ("decode_d0", len(limits.ROWS))
    bench = engines.Bench(str(tiny), tmp_path, 3, False).run()
    n = {r["row"]: r["n"] for r in report.merge(bench.rows()) if r["engine"] == "baton" and r["threads"] == 2}
    assert n["prefill_2048"] == 4 and n["decode_d0"] == n["batch_32"] == 2
    assert "round 2 of 3" in bench.missing[-1]


# ---- peers ----

@pytest.fixture
def program(tmp_path, monkeypatch):
    """A peer made of a few lines of Python."""
    def make(text):
        (tmp_path / "peer.py").write_text(text)
        monkeypatch.setattr(peers, "interpreter", lambda engine: sys.executable)
        monkeypatch.setitem(peers.PACKAGES, "llama.cpp", peers.Package("none==1", [], tmp_path / "peer.py"))
        return peers.Program("llama.cpp", "model", 2)
    return make


def test_a_peer_answers_row_by_row(program):
    peer = program("import sys, json\nfor line in sys.stdin:\n    print('noise')\n"
                   "    print(json.dumps({'samples': {line.strip(): [1]}}), flush=True)\n")
    assert peer.ask("decode_d0", 3) == {"decode_d0 3": [1]}
    assert peer.ask("decode_d0", 1, ["fa_on", "fa_off"]) == {"decode_d0 1 fa_on,fa_off": [1]}
    peer.close()
    assert peer.process.returncode == 0


def test_a_peer_that_ends_is_named_with_its_last_word(program):
    peer = program("raise RuntimeError('no such model')")
    with pytest.raises(peers.Missing, match="llama.cpp: its program ended at decode_d0: RuntimeError: no such model"):
        peer.ask("decode_d0", 1)
    peer.close()


def test_a_run_goes_on_without_a_peer_that_cannot_be_had(tiny, tmp_path, monkeypatch):
    def interpreter(engine):
        raise peers.Missing(f"{engine}: no network")
    fake_tools(tmp_path)
    monkeypatch.setattr(peers, "interpreter", interpreter)
    bench = engines.Bench(str(tiny), tmp_path, 1, True).run()
    assert bench.missing == ["llama.cpp: no network", "openvino: no network"]
    assert {r["engine"] for r in bench.rows()} == {"baton", "baton-int8kv", "baton-bf16", "machine"}


# ---- report ----

def test_rows_of_all_rounds_become_one():
    rounds = [{"row": "a", "engine": "baton", "threads": 2, "unit": "tokens/s", "samples": [5, 1], "limit": 10},
              {"row": "a", "engine": "baton", "threads": 1, "unit": "tokens/s", "samples": [7]},
              {"row": "a", "engine": "baton", "threads": 2, "unit": "tokens/s", "samples": [3], "limit": 10},
              {"row": "b", "engine": "baton", "threads": 2, "unit": "tokens/s", "samples": None}]
    assert report.merge(rounds) == [
        {"row": "a", "engine": "baton", "threads": 2, "median": 3, "min": 1, "max": 5, "unit": "tokens/s", "n": 3, "limit": 10},
        {"row": "a", "engine": "baton", "threads": 1, "median": 7, "min": 7, "max": 7, "unit": "tokens/s", "n": 1, "limit": None}]


def test_the_best_peer_may_be_an_estimate():
    rows = [row("decode_d0", "baton", 304, 400), row("decode_d0", "llama.cpp", 152, 400), row("decode_d0", "openvino", 115.5, 400)]
    words = report.comparison(rows)[1].replace("|", "").split()
    assert words == ["decode_d0", "2", "304", "400", "76", "%", "152", "226", "116", "2.00", "1.35", "2.63", "1.35"]
    assert report.comparison(rows[:1])[1].split() == ["decode_d0", "2", "304", "400", "76", "%", "|", "|"]


def test_of_milliseconds_fewer_are_better():
    rows = [row("start_ms", "baton", 100, None, unit="ms"), row("start_ms", "llama.cpp", 250, None, unit="ms")]
    assert report.comparison(rows)[1].split()[-2:] == ["2.50", "2.50"] and report.details(rows)[2].endswith("0.40")


def test_estimates_are_not_measured_rows():
    estimate, = report.estimates([row("prefill_512", "llama.cpp", 347), row("start_ms", "llama.cpp", 1), row("prefill_512", "baton", 1)])
    assert estimate["engine"] == report.IK and estimate["median"] == pytest.approx(1341) and "n" not in estimate


def test_every_engine_says_its_arithmetic_and_kl():
    lines = report.accuracies([row("prefill_512", "baton", 1), row("kl_prompt", "baton", 0.00409), row("prefill_512", "openvino", 1)])
    assert "0.00409" in lines[1] and "int8" in lines[1] and lines[2].startswith("openvino")
    assert {e.name for e in engines.OURS + engines.PEERS} == set(report.ARITHMETIC)
    assert set(report.IK_BY_LLAMA_CPP) == {(r.name, r.threads) for r in limits.ROWS}


def test_a_loaded_machine_is_named():
    assert machine.describe(0.2, 0.1, 1, 60, 2)["loaded"] == ""
    loaded = machine.describe(3, 4, 20, 60, 2)
    assert "load average was 3.0" in loaded["loaded"] and "steal" in loaded["loaded"] and "20.0 %" in loaded["loaded"]
    meta = {"machine": loaded, "missing": ["openvino: why"], "limits_by": {"limit_int8": "sums", "limit_bf16": None}, "estimated": [1]}
    assert [line.split(":")[0] for line in report.remarks(meta)] == \
        ["Loaded", "Missing", "limit_int8 by sums", "This CPU lacks the instructions for limit_bf16", "ik (est.)"]


# ---- picture ----

def test_the_picture_shows_shares_and_figures():
    rows = [row("prefill_512", "baton", 750), row("prefill_512", "llama.cpp", 250), row("prefill_512", "baton-bf16", 400, 800),
            row("decode_d2048", "baton", 1234, 2468), row("start_ms", "baton", 100, None), row("limit_read", "machine", 40, None)]
    meta = {"cpu": "<CPU> & co", "model": "m.gguf"}
    text = picture.draw(rows, meta)
    assert text == picture.draw(rows, meta)
    root = xml.etree.ElementTree.fromstring(text)
    bars = {b.get("class"): float(b.get("width")) for b in root.findall(SVG + "rect") if b.get("x") == str(picture.LEFT)}
    widths = [float(b.get("width")) for b in root.findall(SVG + "rect") if b.get("height") == str(picture.BAR - 2)]
    assert len([w for w in widths if w != 11]) == 4
    assert bars["llama"] == pytest.approx(picture.PLOT / 4, abs=0.1) and bars["bf16"] == pytest.approx(picture.PLOT / 2, abs=0.1)
    words = [t.text for t in root.findall(SVG + "text")]
    assert {"750", "250", "400 of 800", "1,234", "limit 1,000", "limit 2,468", "prefill 512 tokens", "decode at 2,048"} <= set(words)
    assert not re.search(r"href|url\(|@import|<image|<script", text) and "prefers-color-scheme:dark" in text


def test_a_figure_above_its_limit_stays_in_the_picture():
    root = xml.etree.ElementTree.fromstring(picture.draw([row("batch_4", "baton", 1500)], {}))
    assert max(float(b.get("width")) for b in root.findall(SVG + "rect")) == picture.PLOT
