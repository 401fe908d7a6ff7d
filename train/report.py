"""One self-contained HTML page about a model: tables, and plots as inline SVG. No script, no other file, no network.

The page follows the reader's light or dark setting, fits a phone, and prints. Colours are never the only sign: lines
have dashes of their own, cells hold their number, and each plot says in words what it shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 420, 320
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 44
"""Of a plot, in the units of its view box; the page scales it."""

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 3", "1 4", "6 2 1 2")

HEADS = {
    "positives": "positives",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "threshold": "threshold",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "accuracy": "accuracy",
    "recall_at_1_percent_fpr": "recall at 1% FPR",
    "recall_at_5_percent_fpr": "recall at 5% FPR",
    "brier": "Brier",
    "ece": "ECE",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6068; --paper: #fff; --panel: #f5f6f8; --rule: #d5d8dd;
  --s0: #1f5fbf; --s1: #b3261e; --s2: #1b7f3b; --s3: #8a4fbf; --s4: #a85d00; --s5: #00798c; --s6: #5c5c00;
  --s7: #b0127b }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a4abb5; --paper: #15171a; --panel: #1e2125;
  --rule: #3a3f46; --s0: #7db0ff; --s1: #ff8a80; --s2: #71d28d; --s3: #cfa4ff; --s4: #ffb55c; --s5: #5fd4e6;
  --s6: #d6d65c; --s7: #ff8fd0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: 0 } h2 { margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--rule) }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem }
p { margin: .4rem 0; max-width: 48rem } .soft, figcaption, caption { color: var(--soft); font-size: .9rem }
.scroll { overflow-x: auto } .scroll:focus-visible { outline: 2px solid var(--s0) }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; overflow-wrap: normal }
caption { text-align: left; padding-bottom: .3rem }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top }
th:first-child, td.text { text-align: left } td.text { overflow-wrap: anywhere; min-width: 14rem }
thead th { background: var(--panel) } tfoot th, tfoot td { font-weight: 700 }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; padding: 0 }
.cards div { background: var(--panel); border: 1px solid var(--rule); border-radius: .4rem; padding: .5rem .7rem }
.cards dt { color: var(--soft); font-size: .85rem } .cards dd { margin: 0; font-size: 1.35rem; font-weight: 600 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0; background: var(--panel); border: 1px solid var(--rule); border-radius: .4rem; padding: .6rem;
  break-inside: avoid } figure:only-child { max-width: 44rem } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .grid { stroke: var(--rule) }
svg .line { fill: none; stroke-width: 2 } svg .rule { stroke: var(--soft); stroke-dasharray: 3 4; fill: none }
.legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem; list-style: none; margin: .3rem 0 0; padding: 0;
  font-size: .85rem }
.legend svg { display: inline-block; width: 2rem; height: .8rem; vertical-align: middle }
.warn { border-left: .3rem solid var(--s1); padding-left: .7rem }
@media print { @page { margin: 15mm } body { max-width: none; font-size: 11px; padding: 0 } h2 { break-after: avoid }
  .scroll { overflow: visible } tr { break-inside: avoid }
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --panel: #fff; --rule: #bbb; --s0: #1f5fbf;
  --s1: #b3261e; --s2: #1b7f3b; --s3: #8a4fbf; --s4: #a85d00; --s5: #00798c; --s6: #5c5c00; --s7: #b0127b } }
"""


def write_html(result: dict[str, Any], path: Path) -> None:
    """Write the page to ``path``: whole, or not at all.

    :param result: of :func:`train.evaluate.evaluate_scorer`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(html(result), encoding="utf-8")
    temporary.replace(path)


def html(result: dict[str, Any]) -> str:
    """The page of a result of :func:`train.evaluate.evaluate_scorer`; parts that the result lacks are left out."""
    sections = (
        _summary(result),
        _labels(result["validation"]),
        _curves(result.get("curves") or {}),
        _calibration(result.get("curves") or {}),
        _decisions(result["validation"], result.get("curves") or {}),
        _lengths(result.get("length") or []),
        _hatecheck(result.get("hatecheck") or {}),
        _bias(result.get("bias")),
        _obfuscation(result.get("obfuscation")),
        _examples(result.get("examples") or {}),
        _provenance(result),
    )
    name = escape(str(result["model"]["name"]))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: evaluation</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main>\n</body>\n</html>\n"
    )


def _summary(result: Mapping[str, Any]) -> str:
    model, v = result["model"], result["validation"]
    version = f" {model['version']}" if model.get("version") else ""
    words = [str(model[k]) for k in ("kind", "architecture") if model.get(k)]
    words += [f"scored by {model['scored_by']}"] if model.get("scored_by") else []
    facts: list[tuple[str, str]] = [
        ("mean ROC-AUC", number(v["mean_roc_auc"])),
        ("mean PR-AUC", number(v["mean_pr_auc"])),
        ("macro F1", number(v.get("macro_f1", v["mean_f1"]))),
        ("accuracy", number(v.get("accuracy"))),
        ("mean ECE", number(v.get("mean_ece"))),
    ]
    facts += [(f"HateCheck accuracy, {k}", percent(h["accuracy"])) for k, h in (result.get("hatecheck") or {}).items()]
    if result.get("bias"):
        facts.append(("bias score (1 is best)", number(result["bias"]["bias_score"])))
    if model.get("parameters") is not None:
        facts.append(("parameters", f"{model['parameters'] / 1e6:.2f} M"))
    if model.get("size_bytes") is not None:
        facts.append(("size on disk", f"{model['size_bytes'] / 1e6:.1f} MB"))
    cards = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(value)}</dd></div>" for k, value in facts if value != "-")
    return (
        f"<header><h1>{escape(str(model['name']))}{escape(version)}</h1>"
        f'<p class="soft">{escape(", ".join(words))}; {v["comments"]:,} validation comments, {len(v["labels"])} labels'
        f'</p></header>\n<dl class="cards">{cards}</dl>'
    )


def _labels(v: Mapping[str, Any]) -> str:
    keys = [k for k in HEADS if any(k in m for m in v["labels"].values())]
    rows = [[name, *(_metric(k, m.get(k)) for k in keys)] for name, m in v["labels"].items()]
    foot = ["mean over labels"]
    for k in keys:
        values = [m.get(k) for m in v["labels"].values() if m.get(k) is not None]
        foot.append(number(sum(values) / len(values)) if values and k not in ("positives", "threshold") else "")
    decided = "the label with the highest score" if _single(v) else "score at or above the threshold"
    note = (
        f"A decision is {decided}. ECE is the expected calibration error over {v.get('ece_bins', 15)} bins of equal "
        "width; FPR the false positive rate."
    )
    parts = [table("Metrics by label", ["label", *(HEADS[k] for k in keys)], rows, foot)]
    if "micro" in v:
        all_of = [
            [f"{kind} average", *(number(v[kind][k]) for k in ("precision", "recall", "f1"))]
            for kind in ("macro", "micro")
        ]
        parts.append(table("All labels together", ["", "precision", "recall", "F1"], all_of))
    return section("Labels", f'<p class="soft">{escape(note)}</p>', *parts)


def _curves(curves: Mapping[str, Any]) -> str:
    if not curves:
        return ""
    roc = [(name, c["roc"]["fpr"], c["roc"]["recall"]) for name, c in curves.items() if c["roc"]]
    pr = [(name, c["pr"]["recall"], c["pr"]["precision"]) for name, c in curves.items() if c["pr"]]
    return section(
        "Curves",
        plots(
            [
                line_plot("ROC curves", roc, "false positive rate", "recall", diagonal=True),
                line_plot("Precision-recall curves", pr, "recall", "precision"),
            ]
        ),
    )


def _calibration(curves: Mapping[str, Any]) -> str:
    if not curves:
        return ""
    figures = []
    for name, c in curves.items():
        points = c["reliability"]
        series = [("observed", [p["score"] for p in points], [p["positive"] for p in points])]
        figures.append(
            line_plot(f"Reliability: {name}", series, "mean score", "share positive", diagonal=True, dots=True)
        )
        figures.append(histogram(f"Scores: {name}", c["histogram"]))
    note = (
        "A calibrated model lies on the dashed diagonal: of the comments that it scores 0.7, seven in ten are positive."
    )
    return section("Calibration and scores", f'<p class="soft">{note}</p>', plots(figures))


def _decisions(v: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    parts = []
    if v.get("confusion_matrix"):
        names = list(v["labels"])
        rows = [[f"is {name}", *map(str, row)] for name, row in zip(names, v["confusion_matrix"], strict=True)]
        parts.append(
            table("Comments by true label (row) and decision (column)", ["", *(f"as {n}" for n in names)], rows)
        )
    counts = {name: m["confusion"] for name, m in v["labels"].items() if "confusion" in m}
    if counts:
        heads = ["label", "hit (TP)", "false alarm (FP)", "miss (FN)", "rightly left (TN)"]
        rows = [[name, *(f"{c[k]:,}" for k in ("tp", "fp", "fn", "tn"))] for name, c in counts.items()]
        parts.append(table("Confusion counts by label", heads, rows))
    figures = []
    for name, c in curves.items():
        t = c["thresholds"]
        series = [(key, t["threshold"], t[key]) for key in ("precision", "recall", "f1")]
        mark = None if _single(v) else v["labels"][name]["threshold"]
        figures.append(line_plot(f"Thresholds: {name}", series, "threshold", "", mark=mark))
    return section("Decisions", *parts, plots(figures)) if parts or figures else ""


def _lengths(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    heads = ["characters", "comments", "mean ROC-AUC", "mean PR-AUC", "macro F1", "accuracy"]
    cells = []
    for r in rows:
        upto = f"{r['from']} to {r['to']}" if r["to"] is not None else f"{r['from']} and more"
        keys = ("mean_roc_auc", "mean_pr_auc", "macro_f1", "accuracy")
        cells.append([upto, f"{r['comments']:,}", *(number(r[k]) for k in keys)])
    return section("Length", table("Metrics by length of the comment", heads, cells))


def _hatecheck(files: Mapping[str, Any]) -> str:
    parts = []
    for name, h in files.items():
        flags = " or ".join(h["labels"])
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.append(
            table(
                f"{h['cases']:,} cases; hateful means that {flags} is decided for",
                ["accuracy", "on hateful", "on others", "macro F1", "ROC-AUC"],
                [
                    [
                        percent(h["accuracy"]),
                        percent(h["accuracy_hateful"]),
                        percent(h["accuracy_non_hateful"]),
                        number(h["macro_f1"]),
                        number(h["roc_auc"]),
                    ]
                ],
            )
        )
        bars = [
            (
                key,
                f["accuracy"],
                f"{f['cases']} cases, {'hateful' if f['hateful'] else 'not hateful'}",
                bool(f["hateful"]),
            )
            for key, f in h["functionality"].items()
        ]
        parts.append(plots([bar_plot(f"Accuracy by functionality: {name}", bars, ("hateful", "not hateful"))]))
        if h.get("target"):
            rows = [[key, str(t["cases"]), percent(t["accuracy"])] for key, t in h["target"].items()]
            parts.append(table("Accuracy by whom the case targets", ["target", "cases", "accuracy"], rows))
    return section("HateCheck", *parts) if parts else ""


def _bias(b: Mapping[str, Any] | None) -> str:
    if not b:
        return ""
    areas = {"subgroup_auc": "Subgroup AUC", "bpsn_auc": "BPSN AUC", "bnsp_auc": "BNSP AUC"}
    rates = {"fpr": "false positive rate", "fnr": "false negative rate"} if "fped" in b else {}
    order = sorted(
        b["identities"].items(), key=lambda pair: min([pair[1][a] for a in areas if pair[1][a] is not None] or [1])
    )
    cells = []
    for term, m in order:
        line = [f'<th scope="row">{escape(term)}</th><td>{m["comments"]:,}</td>']
        line += [_heat(m[a], 0.5, 1.0) for a in areas]
        line += [_heat(m[r], 1.0, 0.0) for r in rates]
        cells.append("<tr>" + "".join(line) + "</tr>")
    means = [
        [
            number(b["overall_auc"]),
            *(number(b[f"{a}_power_mean"]) for a in areas),
            number(b["bias_score"]),
            *((number(b["fped"]), number(b["fned"])) if rates else ()),
        ]
    ]
    heads = ["overall AUC", *(f"{n}, power mean" for n in areas.values()), "bias score"]
    heads += ["FPED", "FNED"] if rates else []
    top = "".join(
        f'<th scope="col">{escape(h)}</th>' for h in ("identity", "sentences", *areas.values(), *rates.values())
    )
    note = (
        f"Score of {' or '.join(b['labels'])} on {b['comments']:,} template sentences. Low BPSN: harmless sentences "
        "score high because they name the identity. Low BNSP: toxic ones score low. FPED and FNED add up how far the "
        "error rates of each identity are from those of all sentences; 0 is best."
    )
    return section(
        "Identity bias",
        f'<p class="soft">{escape(note)}</p>',
        table("Over all identities", heads, means),
        '<div class="scroll" tabindex="0" role="region" aria-label="bias by identity"><table>'
        "<caption>By identity, the worst first; darker cells are worse</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(cells)}</tbody></table></div>",
    )


def _obfuscation(o: Mapping[str, Any] | None) -> str:
    if not o:
        return ""
    rows, bars = [], []
    for attack, m in o["mean_roc_auc"].items():
        rows.append([attack, *(number(m[k]) for k in ("off", "drop_off", "on", "drop_on"))])
        for key, word in (("off", "normalizer off"), ("on", "normalizer on")):
            if m[key] is not None:
                bars.append((f"{attack}, {key}", m[key], word, key == "on"))
    heads = ["attack", "off", "drop", "on", "drop"]
    caption = f"Mean ROC-AUC of {o['comments']:,} disguised comments with the normalizer off and on (seed {o['seed']})"
    figure = bar_plot("Mean ROC-AUC under obfuscation", bars, ("normalizer on", "normalizer off"), as_percent=False)
    return section("Obfuscation", table(caption, heads, rows), plots([figure]))


def _examples(examples: Mapping[str, Any]) -> str:
    if not examples:
        return ""
    parts = ['<p class="warn">These are real comments, some of them offensive. Do not publish this page.</p>']
    words = {"false_positives": "flagged, but harmless", "false_negatives": "missed"}
    for name, kinds in examples.items():
        for kind, rows in kinds.items():
            if rows:
                cells = [[str(e["index"]), f"{e['score']:.4f}", e["text"]] for e in rows]
                caption = f"{name}: {words[kind]}, the surest first"
                parts.append(table(caption, ["comment", "score", "text"], cells, text_column=2))
    return section("Error analysis", *parts)


def _provenance(result: Mapping[str, Any]) -> str:
    training, data = result.get("training") or {}, result.get("data") or {}
    facts = {
        "data": data.get("file"),
        "SHA-256 of the data": data.get("sha256"),
        "SHA-256 of the validation comments": data.get("validation_sha256"),
        "comments to train / tune / validate on": " / ".join(
            str(data.get(k, "-")) for k in ("train", "tuning", "validation")
        ),
        "trained on": training.get("machine"),
        "trained by commit": training.get("git_commit"),
        "seed": training.get("seed"),
        "training took": f"{training['seconds']:,.0f} s" if training.get("seconds") is not None else None,
        "versions": ", ".join(f"{k} {v}" for k, v in (training.get("versions") or {}).items()),
        "evaluated on": result.get("machine"),
        "evaluated by commit": result.get("git_commit"),
    }
    rows = [[key, str(value)] for key, value in facts.items() if value not in (None, "")]
    recipe = [[key, str(value)] for key, value in _flat(result.get("recipe") or {})]
    parts = [table("Where the model comes from", ["", ""], rows, text_column=1)]
    if recipe:
        parts.append(table("Recipe", ["key", "value"], recipe, text_column=1))
    return section("Provenance", *parts)


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def plots(figures: Iterable[str]) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="plots">{"".join(figures)}</div>'


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    foot: Sequence[str] = (),
    text_column: int | None = None,
) -> str:
    """A table that scrolls sideways on a narrow screen; cells are escaped here. The first column names the row."""

    def line(cells: Sequence[str]) -> str:
        head = f'<th scope="row">{escape(cells[0])}</th>'
        kinds = [' class="text"' if i == text_column else "" for i in range(1, len(cells))]
        return (
            "<tr>" + head + "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kinds, cells[1:], strict=True)) + "</tr>"
        )

    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    thead = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    bottom = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>{thead}<tbody>{''.join(map(line, rows))}</tbody>{bottom}</table></div>"
    )


def line_plot(
    title: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    x_title: str,
    y_title: str,
    diagonal: bool = False,
    dots: bool = False,
    mark: float | None = None,
) -> str:
    """Curves in the unit square, with a legend where there are several.

    :param series: name, x and y of each, in [0, 1].
    :param mark: an x at which a dashed line stands.
    """
    parts = _axes(x_title, y_title)
    if diagonal:
        parts.append(f'<line class="rule" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    if mark is not None:
        parts.append(f'<line class="rule" x1="{_x(mark)}" y1="{_y(0)}" x2="{_x(mark)}" y2="{_y(1)}"/>')
        parts.append(f'<text x="{_x(min(mark, 0.8)) + 4}" y="{_y(0.03)}">{mark:.2f}</text>')
    for i, (_, x, y) in enumerate(series):
        points = " ".join(f"{_x(a)},{_y(b)}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline class="line" points="{points}"{_stroke(i)}/>')
        if dots:
            parts += [
                f'<circle cx="{_x(a)}" cy="{_y(b)}" r="3" fill="var(--s{i % 8})"/>' for a, b in zip(x, y, strict=True)
            ]
    words = f"{title}: {y_title or 'curves'} over {x_title} of {', '.join(name for name, _, _ in series) or 'no label'}"
    words += f"; the decision threshold {mark:.4f} is marked" if mark is not None else ""
    return _figure(title, words, parts, [name for name, _, _ in series] if len(series) > 1 else [])


def histogram(title: str, counts: Mapping[str, Sequence[int]]) -> str:
    """Shares of the positive and of the negative comments by score; each side adds up to 1."""
    parts = _axes("score", "share of comments")
    for i, (_, values) in enumerate(counts.items()):
        total, bins = max(sum(values), 1), len(values)
        points = [f"{_x(0)},{_y(0)}"]
        for k, value in enumerate(values):
            points += [f"{_x(k / bins)},{_y(value / total)}", f"{_x((k + 1) / bins)},{_y(value / total)}"]
        points.append(f"{_x(1)},{_y(0)}")
        parts.append(f'<polyline class="line" points="{" ".join(points)}"{_stroke(i)}/>')
    words = "; ".join(f"{sum(values):,} {name} comments" for name, values in counts.items())
    return _figure(title, f"{title}: histogram of {words}", parts, list(counts))


def bar_plot(
    title: str, bars: Sequence[tuple[str, float | None, str, bool]], kinds: tuple[str, str], as_percent: bool = True
) -> str:
    """Horizontal bars from 0 to 1.

    :param bars: name, value, a remark for who points at it, and which of the two ``kinds`` it is: the first if true.
    """
    step, start = 26, 170
    height = step * len(bars) + 10
    parts = []
    for i, (name, value, remark, first) in enumerate(bars):
        y, length = i * step + 6, (WIDTH - start - 50) * (value or 0.0)
        shown = "-" if value is None else f"{value:.1%}" if as_percent else f"{value:.4f}"
        look = f'fill="var(--s{0 if first else 4})"' + ("" if first else ' fill-opacity=".55"')
        parts.append(
            f"<g><title>{escape(f'{name}: {shown}, {remark}')}</title>"
            f'<text x="{start - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{start}" y="{y}" width="{length:.1f}" height="{step - 8}" {look}/>'
            f'<text x="{start + length + 5:.1f}" y="{y + 13}">{shown}</text></g>'
        )
    words = f"{title}: " + "; ".join(f"{n} {'-' if v is None else format(v, '.3f')}" for n, v, _, _ in bars)
    legend = f"full colour: {kinds[0]}; pale: {kinds[1]}"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(title)} ({escape(legend)})</figcaption></figure>"
    )


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _figure(title: str, words: str, parts: Sequence[str], names: Sequence[str]) -> str:
    items = "".join(
        '<li><svg viewBox="0 0 32 10" aria-hidden="true"><line class="line" x1="0" y1="5" x2="32" y2="5"'
        f"{_stroke(i)}/></svg> {escape(name)}</li>"
        for i, name in enumerate(names)
    )
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
        f"{legend}<figcaption>{escape(title)}</figcaption></figure>"
    )


def _axes(x_title: str, y_title: str) -> list[str]:
    parts = []
    for step in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{_x(step)}" y1="{_y(0)}" x2="{_x(step)}" y2="{_y(1)}"/>')
        parts.append(f'<line class="grid" x1="{_x(0)}" y1="{_y(step)}" x2="{_x(1)}" y2="{_y(step)}"/>')
        parts.append(f'<text x="{_x(step)}" y="{_y(0) + 16}" text-anchor="middle">{step:g}</text>')
        parts.append(f'<text x="{_x(0) - 6}" y="{_y(step) + 4}" text-anchor="end">{step:g}</text>')
    middle_x, middle_y = _x(0.5), _y(0.5)
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(
        f'<text transform="translate(12 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    return parts


def _x(value: float) -> float:
    return round(float(LEFT) + value * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float) -> float:
    return round(float(HEIGHT - BOTTOM) - value * (HEIGHT - TOP - BOTTOM), 1)


def _stroke(i: int) -> str:
    dash = DASHES[i % len(DASHES)]
    return f' stroke="var(--s{i % 8})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _heat(value: float | None, worst: float, best: float) -> str:
    """A cell the darker the nearer ``value`` is to ``worst``."""
    if value is None:
        return "<td>-</td>"
    badness = min(max((best - value) / (best - worst), 0.0), 1.0)
    return f'<td style="background: rgba(205, 60, 20, {0.6 * badness:.2f})">{value:.3f}</td>'


def _metric(key: str, value: Any) -> str:
    return f"{value:,}" if key == "positives" else number(value)


def _single(v: Mapping[str, Any]) -> bool:
    return v.get("problem_type") == "single_label_classification"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
