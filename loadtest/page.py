"""A run's result as one HTML page without scripts or outside files: the verdict, the numbers, two pictures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 200, 60, 14, 26
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 800px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
.verdict { padding: .6em 1em; border-radius: 6px; color: #fff; font-weight: 600 }
.MET { background: #1a7f37 } .MISSED { background: #b3261e } .INVALID { background: #8a5a00 }
table { border-collapse: collapse } td, th { padding: .2em 1em .2em 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } .bad { color: #b3261e; font-weight: 600 }
svg text { font-size: 11px; fill: #555 } code { overflow-wrap: anywhere }
"""
SKIPPED = ("slo", "measured", "timeline", "percentiles_ms", "slo_met", "valid", "invalid_reason")


def verdict(result: Mapping[str, Any]) -> str:
    """``MET``, ``MISSED`` or ``INVALID``."""
    if not result.get("valid", True):
        return "INVALID"
    return "MET" if result["slo_met"] else "MISSED"


def page(result: Mapping[str, Any]) -> str:
    """:param result: as :func:`loadtest.report.result` with :func:`loadtest.report.distribution` made it."""
    word, measured = verdict(result), result["measured"]
    said = {
        "MET": "all objectives are met",
        "MISSED": "an objective is missed",
        "INVALID": f"this run does not count: {result.get('invalid_reason')}",
    }[word]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{word}: load test</title><style>{STYLE}</style></head>',
        "<body><h1>Load test</h1>",
        f'<p class="verdict {word}">{word}: {html.escape(said)}</p>',
        "<h2>Objectives</h2><table><tr><th>objective</th><th>target</th><th>measured</th><th></th></tr>",
    ]
    for v in result["slo"]:
        sign = "≥" if v["name"].startswith("min_") else "≤"
        value = "-" if v["measured"] is None else f"{v['measured']:.4g}"
        mark = "<td>ok</td>" if v["met"] else '<td class="bad">MISSED</td>'
        cells = f"<td>{html.escape(v['name'])}</td><td class=n>{sign} {v['target']:g}</td><td class=n>{value}</td>"
        parts.append(f"<tr>{cells}{mark}</tr>")
    parts.append("</table><h2>Measured</h2>")
    parts.append(_table({k: v for k, v in measured.items() if k != "errors"} | measured["errors"]))
    rows = result.get("timeline") or []
    if rows:
        parts += ["<h2>Over time</h2>", *_timeline(rows)]
    if spread := {k: v for k, v in (result.get("percentiles_ms") or {}).items() if v is not None}:
        error = f" (each within {100 * result['latency_error']:g}%)"
        parts += [f"<h2>Latency in ms, by percentile{error}</h2>", _table(spread)]
    parts += ["<h2>The run</h2>", _table({k: v for k, v in result.items() if k not in SKIPPED}), "</body></html>\n"]
    return "\n".join(parts)


def _table(values: Mapping[str, Any]) -> str:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            cell = f"<td>{_table(value)}</td>"
        elif isinstance(value, float):
            cell = f"<td class=n>{value:.4g}</td>" if abs(value) < 1000 else f"<td class=n>{value:.1f}</td>"
        else:
            shown = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value) if _many(value) else value
            cell = f"<td><code>{html.escape(str(shown))}</code></td>"
        rows.append(f"<tr><td>{html.escape(str(name))}</td>{cell}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _many(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _timeline(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    at = [row["at_s"] for row in rows]
    rates = [row["requests"] / row["seconds"] for row in rows]
    failed = [row["failures"] / row["seconds"] for row in rows]
    latencies = {f"p{p} ms": ("#888" if p == 50 else "#b3261e", [row[f"p{p}_ms"] for row in rows]) for p in (50, 99)}
    return [
        chart(at, {"requests/s": ("#1f6feb", rates), "failed/s": ("#b3261e", failed)}),
        chart(at, latencies),
    ]


def chart(at_s: Sequence[float], lines: Mapping[str, tuple[str, Sequence[float | None]]]) -> str:
    """Lines over time as SVG, from zero up; where a value is missing the line has a gap."""
    highest = max((v for _, values in lines.values() for v in values if v is not None), default=0.0) or 1.0
    last = max(at_s[-1], 1)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * at / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / highest)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img">']
    for share in (0.0, 0.5, 1.0):
        height = y(share * highest)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{height:.1f}" y2="{height:.1f}" stroke="#ddd"/>')
        label = f"{share * highest:.4g}"
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(f'<text x="{x(share * last):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{share * last:g} s</text>')
    for number, (name, (colour, values)) in enumerate(lines.items()):
        path, pen = "", "M"
        for at, value in zip(at_s, values, strict=True):
            if value is None:
                pen = "M"
                continue
            path += f"{pen}{x(at):.1f} {y(value):.1f}"
            pen = "L"
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-linecap="round"/>')
        parts.append(f'<text x="{LEFT + 8 + 90 * number}" y="{TOP - 3}" style="fill:{colour}">{name}</text>')
    return "".join(parts) + "</svg>"
