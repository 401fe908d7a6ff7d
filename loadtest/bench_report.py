"""The benchmark's outcome: medians over rounds, ratios within rounds, as a table and as a picture."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

OURS, LIMIT = "tritox", "limit"
FIELDS = (
    "p50_ms",
    "p99_ms",
    "cpu_us_per_comment",
    "memory_mb",
    "generator_share",
    "stolen_cores",
    "mean_difference",
)
"""Of a round, of which the median is shown."""


def summarize(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each contender and request size, from the rounds that count.

    Ratios are formed within a round, whose turns lie minutes apart at most, and only then is their median taken: what
    slows the whole machine cancels out. ``to_best_rival`` divides by the rival with the highest median.
    """
    keys = list(dict.fromkeys((r["per_request"], r["contender"]) for r in rounds))
    valid = {
        key: {r["round"]: r for r in rounds if (r["per_request"], r["contender"]) == key and not r["invalid"]}
        for key in keys
    }
    rows = []
    for size, name in keys:
        turns = valid[size, name]
        all_turns = sum((r["per_request"], r["contender"]) == (size, name) for r in rounds)
        row: dict[str, Any] = {"per_request": size, "contender": name, "rounds": len(turns)}
        row["invalid_rounds"] = all_turns - len(turns)
        row["comments_per_s"] = _middle([t["comments_per_s"] for t in turns.values()])
        for field in FIELDS:
            row[field] = _median([t[field] for t in turns.values()])
        for field in sorted({field for t in turns.values() for field in t["served"]}):
            row[field] = _median([t["served"].get(field) for t in turns.values()])
        row["to_limit"] = _ratio(turns, valid.get((size, LIMIT), {}))
        row["cpu_to_limit"] = _cpu_ratio(turns, valid.get((size, LIMIT), {}))
        best = _best_rival(valid, size)
        row["best_rival"] = best
        row["to_best_rival"] = _ratio(turns, valid[size, best]) if best is not None else None
        rows.append(row)
    return rows


def _best_rival(valid: Mapping[tuple[int, str], Mapping[int, Mapping[str, Any]]], size: int) -> str | None:
    rates = {
        name: statistics.median(t["comments_per_s"] for t in turns.values())
        for (at, name), turns in valid.items()
        if at == size and turns and name != LIMIT and not name.startswith(OURS)
    }
    return max(rates, key=lambda name: rates[name]) if rates else None


def _ratio(turns: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]) -> dict[str, float] | None:
    return _middle([turn["comments_per_s"] / others[n]["comments_per_s"] for n, turn in turns.items() if n in others])


def _cpu_ratio(
    turns: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> dict[str, float] | None:
    """The CPU of a comment at the limit by that of the contender: what other work on the machine moves least."""
    pairs = [(others[n]["cpu_us_per_comment"], t["cpu_us_per_comment"]) for n, t in turns.items() if n in others]
    return _middle([limit / ours for limit, ours in pairs if limit and ours])


def _middle(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and greatest."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def markdown(result: Mapping[str, Any]) -> str:
    """What was measured, where and how, and a table for each request size."""
    machine, corpus = result["machine"], result["corpus"]
    lines = [
        f"{machine['cores']} cores of {machine['cpu']} ({', '.join(machine['flags'])}), load generator included; "
        f"{corpus['comments']} comments of {corpus['source']}, {corpus['mean_tokens']} tokens on average; "
        f"{result['clients']} clients, {result['seconds']:g} s a turn, median of interleaved rounds (least-greatest). "
        f"Commit {str(result['commit'])[:12]}, {result['finished']}, `{result['command']}`.",
    ]
    if result["near_empty"]:
        lines.append("The encoder is near-empty: what is measured is all the rest.")
    for size in dict.fromkeys(row["per_request"] for row in result["summary"]):
        rows = [row for row in result["summary"] if row["per_request"] == size]
        lines += ["", f"**{size} comment{'s' if size > 1 else ''} a request**", "", *_table(rows)]
    lines.append("")
    for name, about in result["contenders"].items():
        chosen = ", ".join(f"{key} {value}" for key, value in about["settings"].items())
        found = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
        how = f"best of {len(about['searched'])} settings" if about["searched"] else "not searched"
        parts = [chosen, how, found, about["note"]]
        lines.append(f"- {name}: {'; '.join(part for part in parts if part)}")
    for name, reason in result["not_measured"].items():
        said = list(dict.fromkeys([reason.splitlines()[0], reason.splitlines()[-1]]))
        lines.append(f"- {name} was not measured: {' '.join(said)}")
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [
        "comments/s",
        "of the limit",
        "to best rival",
        "p50 ms",
        "p99 ms",
        "CPU µs a comment",
        "limit's CPU / its",
        "MB",
        "stolen cores",
    ]
    more = [("mean_batch", "mean batch"), ("padding_waste", "padding"), ("queue_ms", "queue ms")]
    more = [(field, title) for field, title in more if any(row.get(field) is not None for row in rows)]
    columns += [title for _, title in more] + ["rounds"]
    lines = [f"| contender | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row in sorted(rows, key=lambda row: -(row["comments_per_s"] or {"median": 0.0})["median"]):
        cells = [
            _range(row["comments_per_s"]),
            _range(row["to_limit"]),
            _range(row["to_best_rival"]),
            *(_number(row[field]) for field in ("p50_ms", "p99_ms", "cpu_us_per_comment")),
            _range(row["cpu_to_limit"]),
            _number(row["memory_mb"]),
            _number(row["stolen_cores"]),
            *(_number(row.get(field)) for field, _ in more),
            str(row["rounds"]) + (f" ({row['invalid_rounds']} INVALID)" if row["invalid_rounds"] else ""),
        ]
        lines.append(f"| {row['contender']} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _range(value: Mapping[str, float] | None) -> str:
    return f"{_number(value['median'])} ({_number(value['min'])}-{_number(value['max'])})" if value else "-"


WIDTH, LEFT, BAR, GAP = 760, 150, 22, 8
COLOURS = {OURS: "#2a7f4f", LIMIT: "#8a8f98"}


def svg(summary: Sequence[Mapping[str, Any]]) -> str:
    """Bars of comments a second, with a line from the least to the greatest round; a dashed one at the limit."""
    sizes = list(dict.fromkeys(row["per_request"] for row in summary))
    parts, y = [], 12.0
    for size in sizes:
        rows = [row for row in summary if row["per_request"] == size and row["comments_per_s"]]
        rows.sort(key=lambda row: -row["comments_per_s"]["median"])
        greatest = max((row["comments_per_s"]["max"] for row in rows), default=1.0)
        scale = (WIDTH - LEFT - 150) / greatest
        y += 20
        parts.append(_text(8, y, f"{size} comment{'s' if size > 1 else ''} a request: comments/s", bold=True))
        y += 12
        top = y
        for row in rows:
            rate = row["comments_per_s"]
            colour = COLOURS.get(row["contender"].split(":")[0], "#5b7fb5")
            width, low, high = (rate[key] * scale for key in ("median", "min", "max"))
            middle = y + BAR / 2
            parts.append(_text(LEFT - 8, middle + 4, row["contender"], anchor="end"))
            parts.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(
                f'<path d="M{LEFT + low:.1f} {middle:.1f}H{LEFT + high:.1f}" stroke="#111" stroke-width="1.5"/>'
            )
            ratio = f" = {row['to_limit']['median']:.0%} of the limit" if row["to_limit"] else ""
            parts.append(_text(LEFT + high + 6, middle + 4, f"{rate['median']:,.0f}{ratio}"))
            y += BAR + GAP
        limit = next((row["comments_per_s"]["median"] for row in rows if row["contender"] == LIMIT), None)
        if limit is not None:
            x = LEFT + limit * scale
            parts.append(f'<path d="M{x:.1f} {top:.1f}V{y:.1f}" stroke="#8a8f98" stroke-dasharray="4 3"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10:.0f}" width="{WIDTH}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{html.escape(text)}</text>'
