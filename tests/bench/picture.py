"""Draws the engine bench: each row by each engine, as a share of what the machine can do at most. Pure: rows in, SVG text out.

The same rows give the same bytes. No font, script or image is loaded; colours follow the reader's light or dark theme.
"""
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP = 860, 165, 110, 112
PLOT = WIDTH - LEFT - RIGHT
BAR, GAP = 13, 14  # a bar's height with its air; the air between groups
SHARE_MAX = 100  # percent at the right end of the axis

# engine: CSS class, name in the legend; in the order of a group's bars.
ENGINES = {"baton": ("baton", "Baton"), "baton-int8kv": ("int8kv", "Baton, int8 cache"), "baton-bf16": ("bf16", "Baton, profile bf16"),
           "llama.cpp": ("llama", "llama.cpp"), "ik_llama.cpp (estimated)": ("ik", "ik_llama.cpp (estimated)"),
           "openvino": ("openvino", "OpenVINO GenAI")}
KINDS = {"prefill": "prefill {} tokens", "decode": "decode at {}", "batch": "{} sequences"}

LIGHT = {"bg": "#ffffff", "text": "#1f2328", "faint": "#59636e", "grid": "#d8dee4", "baton": "#0b6e99", "int8kv": "#3f97bd", "bf16": "#7fb9d3",
         "llama": "#b4632b", "ik": "#c99a3a", "openvino": "#7a5aa6"}
DARK = {"bg": "#0d1117", "text": "#e6edf3", "faint": "#9aa4af", "grid": "#30363d", "baton": "#4cb3dc", "int8kv": "#3585a8", "bf16": "#2a627b",
        "llama": "#e08d52", "ik": "#d9b25c", "openvino": "#a98bd6"}


def _style():
    def colours(theme):
        rules = [f"svg{{background:{theme['bg']}}}text{{fill:{theme['text']}}}.faint{{fill:{theme['faint']}}}",
                 f".grid{{stroke:{theme['grid']}}}.edge{{stroke:{theme['faint']}}}"]
        return "".join(rules) + "".join(f".{name}{{fill:{theme[name]}}}" for name, _ in ENGINES.values()) \
            + f".ik{{fill-opacity:.55;stroke:{theme['ik']};stroke-dasharray:3 2}}"
    return ("<style>text{font-family:system-ui,sans-serif;font-size:11px}.head{font-size:17px;font-weight:600}.row{font-size:12px;"
            "font-weight:600}" + colours(LIGHT) + "@media (prefers-color-scheme:dark){" + colours(DARK) + "}</style>")


def _text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _figure(value):
    return f"{value:,.0f}"


def _name(row):
    kind, n = row["row"].split("_")
    return KINDS[kind].format(f"{int(n.lstrip('d')):,}")


def _groups(rows):
    groups = {}
    for row in rows:
        if row["engine"] in ENGINES and row.get("limit") and row["row"].split("_")[0] in KINDS:
            groups.setdefault((row["row"], row["threads"]), []).append(row)
    for engines in groups.values():
        engines.sort(key=lambda row: list(ENGINES).index(row["engine"]))
    return groups


def _axis(bottom):
    out = []
    for share in range(0, SHARE_MAX + 1, 25):
        x = LEFT + PLOT * share / SHARE_MAX
        out.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom:.1f}" class="{"edge" if share == SHARE_MAX else "grid"}"/>')
        out.append(_text(x, TOP - 11, f"{share} %", "faint", "middle"))
    return out


def _legend(names):
    out, x = [], 16
    for engine in names:
        kind, words = ENGINES[engine]
        out.append(f'<rect x="{x:.1f}" y="66" width="11" height="11" class="{kind}"/>')
        out.append(_text(x + 15, 76, words))
        x += 30 + 6.4 * len(words)
    return out


def _group(key, engines, top):
    """One row of the bench: its name, its bars with their figures, its limit at the right end."""
    name, threads = key
    out = [_text(LEFT - 10, top + 11, _name(engines[0]), "row", "end")]
    if threads == 1:
        out.append(_text(LEFT - 10, top + 24, "1 thread", "faint", "end"))
    limit = next((row["limit"] for row in engines if row["engine"] == "baton"), engines[0]["limit"])
    out.append(_text(LEFT + PLOT + 8, top + 11, f"limit {_figure(limit)}", "faint"))
    for i, row in enumerate(engines):
        share = min(100 * row["median"] / row["limit"], SHARE_MAX)
        y, width = top + i * BAR, PLOT * share / SHARE_MAX
        out.append(f'<rect x="{LEFT}" y="{y + 1:.1f}" width="{width:.1f}" height="{BAR - 2}" class="{ENGINES[row["engine"]][0]}"/>')
        words = _figure(row["median"]) + (f" of {_figure(row['limit'])}" if row["limit"] != limit else "")
        out.append(_text(LEFT + width + 5, y + BAR - 2.5, words))
    return out


def _limits(rows):
    """The medians of the machine's own peaks, with the most threads that were measured."""
    words = {"limit_read": ("memory read", "GB/s"), "limit_int8": ("int8", "GOP/s"), "limit_bf16": ("bf16", "GFLOP/s")}
    most = max((row["threads"] for row in rows if row["row"] in words), default=0)
    return ", ".join(f"{words[row['row']][0]} {row['median']:,.0f} {words[row['row']][1]}" for row in sorted(rows, key=lambda r: r["row"], reverse=True)
                     if row["row"] in words and row["threads"] == most)


def draw(rows, meta):
    """The SVG. `rows`: as report.merge makes them, and its estimates; `meta`: model, cpu."""
    groups = _groups(rows)
    heights = {key: max(len(engines), 2) * BAR + GAP for key, engines in groups.items()}
    bottom = TOP + sum(heights.values())
    height = bottom + 40
    present = [engine for engine in ENGINES if any(row["engine"] == engine for engines in groups.values() for row in engines)]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">', _style(),
           "<title>Tokens per second of each engine, as a share of what the machine can do at most</title>",
           _text(16, 28, "Tokens per second, as a share of what the machine can do at most", "head"),
           _text(16, 48, f"{meta.get('model', '')}, 2 threads unless said; medians of one interleaved run on {meta.get('cpu', '')}", "faint")]
    out += _legend(present) + _axis(bottom)
    top = TOP
    for key, engines in groups.items():
        out += _group(key, engines, top)
        top += heights[key]
    out += [_text(16, bottom + 14, f"The machine in this run: {_limits(rows)}. A limit counts the weights and the cache read, or the products of the",
                  "faint"),
            _text(16, bottom + 28, "accuracy contract (72 % of the int8 peak; attention in bf16), whichever is slower.", "faint"), "</svg>"]
    return "\n".join(out) + "\n"
