"""One response as a page: every token on a background that shows its entropy, TECA running alongside.

In: a record. Out: HTML in one file that loads nothing else: no font, no image, no address, no script but its own, as
a content security policy enforces. Whatever tokens contain is text: escaped, control characters shown as \\xNN,
each token isolated so that a right-to-left mark in one can't turn its neighbours.

    background of a token    entropy, in 16 steps from 0 to the scale's end (99th percentile, at least 0.1 nats)
    line under a token       TECA up to that token, likewise (95th percentile: the first tokens often stick out)
    chart on top             both over all tokens, each up to its maximum; the pointer in the text moves a mark in it
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import unicodedata

from trainer.records.names import title
from trainer.records.record_files import Record

LEVELS = 16
_CHART_WIDTH, _CHART_HEIGHT, _CHART_POINTS = 1000, 120, 1000

# Light: white to red-brown under black text; dark: near-black to the same hue under white text. Contrast of the text on
# the darkest (lightest) step is above 4.5 in both. Lines for TECA: blues.
_LIGHT = ((255, 255, 255), (240, 140, 75)), ((214, 228, 245), (0, 76, 153))
_DARK = ((22, 24, 28), (158, 66, 12)), ((32, 52, 78), (120, 185, 255))


def _ramp(ends: tuple[tuple[int, int, int], tuple[int, int, int]]) -> list[str]:
    """LEVELS colours between two, in sRGB."""
    start, end = ends
    steps = [i / (LEVELS - 1) for i in range(LEVELS)]
    return ["#" + "".join(f"{round(a + (b - a) * t):02x}" for a, b in zip(start, end, strict=True)) for t in steps]


def _variables(ends: tuple) -> str:
    entropy, teca = (_ramp(pair) for pair in ends)
    pairs = [f"--e{i}:{c};" for i, c in enumerate(entropy)] + [f"--t{i}:{c};" for i, c in enumerate(teca)]
    return "".join(pairs)


_CSS = (
    ":root{color-scheme:light dark;--page:#fff;--text:#111;--dim:#595959;--rule:#ccc;--bars:#c2622a;--line:#004c99;"
    + _variables(_LIGHT)
    + "}@media (prefers-color-scheme:dark){:root{--page:#16181c;--text:#f2f2f2;--dim:#a8adb5;--rule:#444;"
    "--bars:#d07a40;--line:#78b9ff;"
    + _variables(_DARK)
    + "}}"
    + """
body{margin:0 auto;max-width:62rem;padding:0 1rem 3rem;background:var(--page);color:var(--text);
 font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.15rem;margin:1rem 0 .3rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;margin:.3rem 0}
dt{color:var(--dim)} dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
details pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--rule);padding-left:.8rem}
header{position:sticky;top:0;background:var(--page);border-bottom:1px solid var(--rule);padding:.4rem 0}
svg{display:block;width:100%;height:7.5rem}
.bars{stroke:var(--bars);fill:none;vector-effect:non-scaling-stroke;stroke-width:1}
.teca{stroke:var(--line);fill:none;vector-effect:non-scaling-stroke;stroke-width:2}
.mark{stroke:var(--text);vector-effect:non-scaling-stroke;stroke-width:1;visibility:hidden}
.scale{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;color:var(--dim);font-size:.82rem;align-items:center}
.key{display:inline-block;width:7rem;height:.8rem;vertical-align:-.1rem;margin:0 .35rem;border:1px solid var(--rule)}
output{margin-left:auto;color:var(--text);font-variant-numeric:tabular-nums;min-width:17rem;text-align:right}
#response{font:14px/2.05 ui-monospace,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;
 margin-top:1rem}
#response span{unicode-bidi:isolate;padding:.12rem 0 .1rem;background:var(--b);border-bottom:3px solid var(--u);
 box-decoration-break:clone;-webkit-box-decoration-break:clone}
#response span:hover{outline:1px solid var(--text)}
#response i{font-style:normal;color:var(--dim);font-size:.8em}
"""
    + "".join(f".e{i}{{--b:var(--e{i})}}.t{i}{{--u:var(--t{i})}}" for i in range(LEVELS))
)

_SCRIPT = """
const spans=document.querySelectorAll('#response span'),mark=document.querySelector('.mark'),
 out=document.querySelector('output');
spans.forEach((span,i)=>{span.dataset.i=i});
document.getElementById('response').addEventListener('pointerover',event=>{
 const span=event.target.closest('span');if(!span)return;
 const x=(Number(span.dataset.i)+.5)/spans.length*WIDTH;
 mark.setAttribute('x1',x);mark.setAttribute('x2',x);mark.style.visibility='visible';
 out.textContent=span.title;
});
""".replace("WIDTH", str(_CHART_WIDTH))


def token_page(record: Record) -> str:
    """The page of one response.

    Args:
        record: as trainer.records.record_files defines it; tokens, token_entropies and teca are used in full.
    """
    entropy, teca = record["token_entropies"], record["teca"]
    top_entropy, top_teca = _scale(entropy, share=0.99), _scale(teca, share=0.95)
    spans = [
        f'<span class="e{_level(h, top_entropy)} t{_level(t, top_teca)}" '
        f'title="token {i}: entropy {h:.4f}, TECA {t:.4f} nats">{shown_token(token)}</span>'
        for i, (token, h, t) in enumerate(zip(record["tokens"], entropy, teca, strict=True), start=1)
    ]
    name = f"{title(record['benchmark'])}, {title(record['method'])}: {record['id']}, sample {record['sample']}"
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    last = f"{teca[-1]:.4f} nats" if teca else "none (no token)"
    cut = "; cut at the token limit" if record["finish_reason"] == "length" else ""
    answer = record["extracted_answer"]
    facts = {
        "question": record["question"],
        "expected": record["ground_truth"],
        "answer": ("none found" if answer is None else answer) + (" (right)" if record["is_correct"] else " (wrong)"),
        "length": f"{record['response_length']} tokens{cut}",
        "last TECA": last,
    }
    rows = "".join(f"<dt>{key}</dt><dd>{_text(value)}</dd>" for key, value in facts.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<link rel="icon" href="data:,">
<title>{_text(name)}</title>
<style>{_CSS}</style></head>
<body>
<h1>{_text(name)}</h1>
<dl>{rows}</dl>
<details><summary>prompt</summary><pre>{_text(record["prompt"])}</pre></details>
<header>
{_chart(entropy, teca)}
<div class="scale"><span>entropy 0<span class="key" style="background:linear-gradient(90deg,{_stops("e")})"></span>\
{top_entropy:.2f} nats and more</span><span>TECA 0<span class="key" style="background:linear-gradient(90deg,\
{_stops("t")})"></span>{top_teca:.2f} nats and more</span><span>chart: up to {max(entropy, default=0):.2f} and \
{max(teca, default=0):.2f} nats</span><output></output></div>
</header>
<div id="response">{"".join(spans)}</div>
<script>{_SCRIPT}</script>
</body></html>
"""


def shown_token(token: str) -> str:
    """A token as HTML text: markup is escaped, and invisible characters are shown."""
    shown = []
    for character in token:
        if character in _BREAKS:
            shown.append(f"<i>{_BREAKS[character]}</i>{character}")
        elif _unseen(character):
            shown.append(f"<i>{_escape_sequence(character)}</i>")
        else:
            shown.append(html.escape(character))
    return "".join(shown) or "<i>(empty)</i>"


_BREAKS = {"\n": "\\n", "\t": "\\t"}
# Marks of direction and width: they would change how the text around them reads.
_INVISIBLE = frozenset(
    "\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def _escape_sequence(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _INVISIBLE


def _text(value: str) -> str:
    """A field of the record as HTML text."""
    return "".join(_escape_sequence(c) if _unseen(c) and c not in _BREAKS else html.escape(c) for c in value)


def _scale(values: list[float], share: float) -> float:
    """The end of a scale: that quantile of the values, at least 0.1."""
    if not values:
        return 0.1
    ordered = sorted(values)
    return max(0.1, ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)])


def _level(value: float, top: float) -> int:
    return min(LEVELS - 1, max(0, round(value / top * (LEVELS - 1))))


def _stops(kind: str) -> str:
    return f"var(--{kind}0),var(--{kind}{LEVELS - 1})"


def _chart(entropy: list[float], teca: list[float]) -> str:
    """Inline SVG: a bar per token (the largest of each group of neighbours, if there are many) and TECA as a line."""
    n = len(entropy)
    height = _CHART_HEIGHT
    top, top_teca = max([*entropy, 1e-9]), max([*teca, 1e-9])
    group = max(1, -(-n // _CHART_POINTS))
    bars, line = [], []
    for start in range(0, n, group):
        stop = min(start + group, n)
        x = (start + stop) / 2 / n * _CHART_WIDTH
        bars.append(f"M{x:.1f} {height}V{height * (1 - 0.97 * max(entropy[start:stop]) / top):.1f}")
        line.append(f"{x:.1f},{height * (1 - 0.97 * teca[stop - 1] / top_teca):.1f}")
    return (
        f'<svg viewBox="0 0 {_CHART_WIDTH} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="token entropy and TECA over the response"><path class="bars" d="{"".join(bars)}"/>'
        f'<polyline class="teca" points="{" ".join(line)}"/>'
        f'<line class="mark" x1="0" x2="0" y1="0" y2="{height}"/></svg>'
    )
