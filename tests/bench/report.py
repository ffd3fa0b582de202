"""Turns rows of samples into rows of figures, tables and the picture's input. Pure: no clock, no file."""
import statistics

IK = "ik_llama.cpp (estimated)"
PEER_COLUMNS = ["llama.cpp", IK, "openvino"]

# What each engine computes in, for the report. KL is measured by bench_accuracy.py.
ARITHMETIC = {
    "baton": "activations int8 per 32, weights as in the file; attention and cache bf16 (profile fast)",
    "baton-int8kv": "as baton; K and V of the cache int8 with a scale per head and token",
    "baton-bf16": "all bf16, weights expanded (profile bf16)",
    "llama.cpp": "activations int8 per 32, weights as in the file; cache f16, attention f16 and f32",
    "openvino": "its defaults: weights from the file, activations and cache of its own choice (int8 where it may)",
}

# ik_llama.cpp is in no package index. Its figures are those of llama.cpp in this run times the ratio of the two in one older run on one
# machine (2 Zen 4 cores, each at its best setting).
IK_BY_LLAMA_CPP = {
    ("prefill_128", 2): 1407 / 336, ("prefill_512", 2): 1341 / 347, ("prefill_2048", 2): 915 / 269,
    ("decode_d0", 2): 226 / 152, ("decode_d2048", 2): 92 / 80, ("decode_d4096", 2): 60 / 56,
    ("batch_4", 2): 263 / 201, ("batch_16", 2): 288 / 236, ("batch_32", 2): 255 / 248,
    ("prefill_512", 1): 766 / 173, ("decode_d0", 1): 131 / 93,
}


def merge(rows):
    """Rows of the same name, engine and threads become one with the figures of all samples, in the order in which they came."""
    merged = {}
    for row in rows:
        if not row["samples"]:
            continue
        key = (row["row"], row["engine"], row.get("threads", 1))
        entry = merged.setdefault(key, {"unit": row["unit"], "samples": [], "limit": row.get("limit")})
        entry["samples"] += row["samples"]
    return [{"row": row, "engine": engine, "threads": threads, "median": statistics.median(v["samples"]),
             "min": min(v["samples"]), "max": max(v["samples"]), "unit": v["unit"], "n": len(v["samples"]), "limit": v["limit"]}
            for (row, engine, threads), v in merged.items()]


def estimates(rows):
    """Rows for ik_llama.cpp: llama.cpp's median of this run times a ratio measured elsewhere. Not measured: they carry no min, max or n."""
    return [{"row": row["row"], "engine": IK, "threads": row["threads"], "unit": row["unit"], "limit": row["limit"],
             "median": row["median"] * IK_BY_LLAMA_CPP[row["row"], row["threads"]]}
            for row in rows if row["engine"] == "llama.cpp" and (row["row"], row["threads"]) in IK_BY_LLAMA_CPP]


def speedup(row, ours):
    """How many times better `ours` is; None where one of them is 0."""
    if not row["median"] or not ours["median"]:
        return None
    return row["median"] / ours["median"] if row["unit"] == "ms" else ours["median"] / row["median"]


def groups(rows):
    """[((row, threads), {engine: row})] of the engine bench's rows, in the order of `rows`."""
    out = {}
    for row in rows:
        out.setdefault((row["row"], row["threads"]), {})[row["engine"]] = row
    return list(out.items())


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 20 else f"{value:.2f}"


def figure(value):
    return f"{value:.2f}" if abs(value) >= 1 or not value else f"{value:.5f}"


def share(row):
    return f"{100 * row['median'] / row['limit']:.0f} %" if row.get("limit") else ""


def comparison(rows):
    """Lines: each row of the engine bench by Baton, its limit, its peers, and how many times Baton is faster."""
    rows = rows + estimates(rows)
    lines = [f"{'row':<14}{'threads':>8}{'baton':>9}{'limit':>9}{'share':>7} |{'llama.cpp':>11}{'ik (est.)':>11}{'openvino':>11} |"
             f"{'/llama.cpp':>11}{'/ik (est.)':>11}{'/openvino':>11}{'/best':>7}"]
    for (name, threads), engines in groups(rows):
        ours = engines.get("baton")
        if not ours or not (ours["limit"] or len(engines) > 1):
            continue
        ratios = [speedup(engines[peer], ours) if peer in engines else None for peer in PEER_COLUMNS]
        best = min((r for r in ratios if r), default=None)
        lines.append(f"{name:<14}{threads:>8}{number(ours['median']):>9}{number(ours['limit']):>9}{share(ours):>7} |"
                     + "".join(f"{number(engines[p]['median']) if p in engines else '':>11}" for p in PEER_COLUMNS) + " |"
                     + "".join(f"{f'{r:.2f}' if r else '':>11}" for r in ratios) + f"{f'{best:.2f}' if best else '':>7}")
    return lines


def details(rows):
    """Lines: every row with all its figures."""
    base = {(row["row"], row["threads"]): row for row in rows if row["engine"] == "baton"}
    lines = [f"{'row':<44}{'engine':<18}{'threads':>8}{'median':>12}{'min':>12}{'max':>12}  {'unit':<12}{'n':>4}{'limit':>10}{'share':>7}"
             "  baton/this"]
    for row in rows:
        ours = base.get((row["row"], row["threads"]))
        ratio = ours["median"] / row["median"] if ours and row["median"] and row["engine"] != "baton" else None
        lines.append(f"{row['row']:<44}{row['engine']:<18}{row['threads']:>8}{figure(row['median']):>12}{figure(row['min']):>12}{figure(row['max']):>12}"
                     f"  {row['unit']:<12}{row['n']:>4}{number(row['limit']):>10}{share(row):>7}" + (f"  {ratio:.2f}" if ratio else ""))
    return lines


def accuracies(rows):
    """Lines: which arithmetic each engine that was measured uses, and its KL where that was measured."""
    kl = {row["engine"]: row["median"] for row in rows if row["row"] == "kl_prompt"}
    names = list(dict.fromkeys(row["engine"] for row in rows if row["engine"] in ARITHMETIC))
    names += [name for name in kl if name not in names]
    if not names:
        return []
    lines = [f"{'engine':<18}{'KL':>10}  arithmetic"]
    return lines + [f"{name:<18}{f'{kl[name]:.5f}' if name in kl else '':>10}  {ARITHMETIC.get(name, '')}" for name in names]


def remarks(meta):
    """Lines: what whoever reads the figures must know."""
    lines = [f"Loaded: {meta['machine']['loaded']}. The figures of this run are too low."] if meta["machine"]["loaded"] else []
    lines += [f"Missing: {words}" for words in meta["missing"]]
    lines += [f"{name} by {by}" if by else f"This CPU lacks the instructions for {name}: rows whose limit needs it have none."
              for name, by in meta["limits_by"].items()]
    if meta["estimated"]:
        lines.append("ik (est.): ik_llama.cpp is in no package index; llama.cpp's figure of this run times their ratio in one older run.")
    return lines
