"""``python -m export.results``: the reports in ``export/results`` as the table of ``export/RESULTS.md``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export import exits

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"

INTRODUCTION = """# Measured exports

Written by `python -m export.results` from the files in `export/results`, which `python -m export.onnx --report`,
`python -m export.tokenizers_check --report`, `python -m export.cpu --report` and `python -m export.cascade --report`
wrote. Do not edit by hand.

Each form of a model was compared with the artifact on validation comments in natural proportion. *Flips* is the share
of the comments whose decision changed, of the label where most did. Speed is comments a second of one thread's CPU
time, the median of interleaved rounds, on batches of real comments as the server makes them: of requests with one
comment each (joined where they are padded alike), and of requests with 16. *Neighbours* is how far a score moves with
the comments that are scored beside it."""


def render(folder: Path = FOLDER) -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"libraries": tokenizers, "curve": cascade, "operators": operators}
        kind = next((kinds[key] for key in kinds if key in report), section)
        parts += [f"## {path.stem}", kind(report)]
    return "\n\n".join(parts) + "\n"


def section(report: Mapping[str, Any]) -> str:
    """One export: where it was measured, its forms, and what was published."""
    commit, size = str(report["git_commit"])[:12], report["bytes"] / 1e6
    lines = [
        f"Artifact {report['artifact']}, {report['settings']['precision']}; {report['comparison']['comments']:,} "
        f"comments; {report['machine']}; commit {commit}; model version {report['model_version']}. Published: "
        f"**{report['form']}**, {size:.1f} MB."
    ]
    if report.get("candidates"):
        mixes = list(report["candidates"][0]["comments_per_s"] or {})
        head = ["form", "MB", *(f"comments/s, {mix}" for mix in mixes), "ROC-AUC drop", "flips", "gate"]
        lines += ["", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(mixes) + 3) + "---|"]
        for row in report["candidates"]:
            rates = (
                [f"{row['comments_per_s'][mix]:.1f}" for mix in mixes] if row["comments_per_s"] else ["-"] * len(mixes)
            )
            compared = row["mean_auc_drop"] is not None
            cells = [
                row["name"],
                f"{row['bytes'] / 1e6:.1f}",
                *rates,
                f"{row['mean_auc_drop']:+.5f}" if compared else "-",
                f"{row['max_flip_rate']:.2%}" if compared else "-",
                ("; ".join(row["failures"]) or "passes") if compared else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", outcome(report)])


def tokenizers(report: Mapping[str, Any]) -> str:
    """Tokenizer libraries against the reference: on how many texts they differ, on which, and what a comment costs."""
    times: Mapping[str, Mapping[str, float]] = report["cpu_us_per_comment"]
    sizes = list(next(iter(times.values())))
    libraries = report["libraries"]
    real = sum(count for name, count in report["classes"].items() if name.startswith("real: "))
    names = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = [
        "library",
        "texts compared",
        "other ids",
        "of them real comments",
        *(f"us, {size} a call" for size in sizes),
    ]
    lines = [
        f"The tokenizer of {report['tokenizer_file']} ({report['tokenizer']}, {report['vocabulary']:,} tokens) on "
        f"{report['strings']:,} texts, of which {real:,} are real comments and the rest is fuzzed, in "
        f"{sum(not name.startswith('real: ') for name in report['classes'])} classes; {names}; {report['machine']}; "
        f"commit {str(report['git_commit'])[:12]}. A library that has differed too often is compared no further. CPU "
        f"time is in microseconds a comment ({report['mean_characters']:.0f} characters on average), one thread but "
        "for the row that says parallel, no comment twice.",
        "",
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
    ]
    for name, by_size in times.items():
        found = libraries.get(name)
        cells = ["", "", ""]
        if found:
            differing = sum(count for kind, count in found["by_class"].items() if kind.startswith("real: "))
            cells = [f"{found['compared']:,}", f"{found['differences']:,}", f"{differing:,}"]
        lines.append(f"| {' | '.join([name, *cells, *(f'{by_size[size]:.1f}' for size in sizes)])} |")
    exact = [name for name, found in libraries.items() if not found["differences"]]
    lines += ["", f"The same ids on all texts: {', '.join(exact) or 'none'}."]
    for name, reason in report["absent"].items():
        lines.append(f"Not compared: {name} ({reason}).")
    return "\n".join(lines)


def operators(report: Mapping[str, Any]) -> str:
    """What operators that are slow on a CPU cost."""
    rates: Mapping[str, Mapping[str, float]] = report["operators"]
    mixes = list(next(iter(rates.values())))
    lines = [
        f"The artifact {report['artifact']} with BiasGelu and SkipLayerNormalization fused, and as it is served (see "
        f"export/cpu.py); {report['comments']:,} comments; ONNX Runtime {report['onnxruntime']}; {report['machine']}; "
        f"commit {str(report['git_commit'])[:12]}.",
        "",
        f"| form | {' | '.join(f'comments/s, {mix}' for mix in mixes)} |",
        f"|---|{'---:|' * len(mixes)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{row[mix]:.1f}' for mix in mixes)} |" for name, row in rates.items()]
    return "\n".join(lines)


LADDER = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)
"""Bounds on what changes that a cascade's curve is shown for."""

COUNTED = {
    "comments": "comments with any decision other than the encoder's",
    "decisions": "single decisions, one for each comment and label, that are not the encoder's",
}


def cascade(report: Mapping[str, Any]) -> str:
    """One cascade: what its stages cost, and what it would do within each bound."""
    encoder, cost, comments = report["encoder"], report["cpu_us"], report["comments"]
    names, count = [stage["name"] for stage in report["stages"]], report["bound"]["count"]
    sizes = ", ".join(f"{stage['name']} {stage['bytes'] / 1e6:.2f} MB" for stage in report["stages"])
    power = report["curve"][0].get("power", 0.0)
    bold = (
        f" A comment's risk grows with what the encoder takes for its length, to the power {power:g}." if power else ""
    )
    micros = ", ".join(f"{name} {value:,.0f}" for name, value in cost.items())
    lines = [
        f"A cascade in front of {encoder['model']} (version {encoder['version']}, artifact {encoder['artifact']}); "
        f"stages: {sizes}; {report['machine']}; commit {str(report['git_commit'])[:12]}. CPU time of a comment, in "
        f"microseconds of one thread: {micros}.",
        "",
        f"*Bound* is on the share of {COUNTED[count]}, kept at "
        f"{report['bound']['confidence']:.0%} confidence on {comments['tuning']:,} tuning comments. The "
        f"rest was counted on {comments['validation']:,} validation comments; arrows lead from the encoder "
        "alone to the cascade. Where the mean "
        f"ROC-AUC of the tuning comments would fall by more than {report['max_auc_drop']}, fewer are answered early."
        f"{bold} "
        f"Comments/s on {report['cores']} cores follow from the CPU times alone, without what serving costs.",
        "",
        f"| bound | {' | '.join(f'by {name}' for name in names)} | changed comments | changed decisions | "
        "mean ROC-AUC | mean PR-AUC | macro F1 | comments/s | speed-up |",
        "|---:|" + "---:|" * (len(names) + 7),
    ]
    for bound in sorted({*LADDER, report["bound"]["changed"]}):
        step = exits.choose(report["curve"], count, bound, report["max_auc_drop"])
        if step is None:
            lines.append(f"| {bound:.2%} | {' | '.join(['-'] * (len(names) + 7))} |")
            continue
        row = report["curve"][step]
        found = row["validation"]
        cells = [
            *(f"{share:.1%}" for share in found["answered_by"][:-1]),
            f"{found['changed_share']:.2%}",
            f"{found['changed_decisions']:.3%}",
            *(
                "-" if found[key][0] is None else f"{found[key][0]:.4f} -> {found[key][1]:.4f}"
                for key in ("mean_roc_auc", "mean_pr_auc", "macro_f1")
            ),
            f"{row['comments_per_s']:,.0f}",
            f"{row['speedup']:.1f}x",
        ]
        mark = "**" if bound == report["bound"]["changed"] else ""
        lines.append(f"| {mark}{bound:.2%}{mark} | {' | '.join(cells)} |")
    return "\n".join(lines)


def outcome(report: Mapping[str, Any]) -> str:
    """What the published form changes, in a sentence."""
    found = report["comparison"]
    bias, neighbours = found.get("bias"), report.get("neighbour_effect")
    areas = [pair["roc_auc"] for pair in found["labels"].values() if pair["roc_auc"][0] is not None]
    before, after = (sum(pair[i] for pair in areas) / max(len(areas), 1) for i in (0, 1))
    text = f"Mean ROC-AUC {before:.4f} -> {after:.4f}. Largest difference of a score: {found['max_difference']:.4f}."
    if bias and bias["max_shift"] is not None:
        text += (
            f" Identity bias, as a mean area over {bias['identities']} identities, shifts by {bias['max_shift']:.4f}."
        )
    if neighbours:
        text += (
            f" Neighbours: at most {neighbours['max_difference']:.4f}, on average {neighbours['mean_difference']:.5f}."
        )
    return text


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m export.results", description="Write export/RESULTS.md from the reports in export/results."
    )
    p.add_argument("--check", action="store_true", help="write nothing; fail where the page is not what the files say")
    arguments = p.parse_args(argv)
    text = render()
    if arguments.check:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{PAGE} is not what its files say: run `python -m export.results`\n")
        return 1
    temporary = PAGE.with_name(f".{PAGE.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(PAGE)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
