"""One page with every measured result: the rows of ``train/results`` as the Markdown tables of ``train/RESULTS.md``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train import bench

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
THROUGHPUT = "throughput.json"

Row = tuple[str, Mapping[str, Any]]


def write(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write the page from the result files in ``folder``: whole, or not at all."""
    temporary = page.with_name(f".{page.name}.{os.getpid()}")
    temporary.write_text(render(folder), encoding="utf-8")
    temporary.replace(page)


def render(folder: Path = FOLDER) -> str:
    """The page's text."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "validation" in content:
            rows.append((path.stem, content))
    parts = [
        "# Measured results\n\nWritten by `python -m train results` from the files in `train/results`, which "
        "`python -m train eval --out` and `python -m train bench --out` wrote. Each file names its data, seed, machine "
        "and commit. Do not edit by hand.",
        "## The six labels\n\nOn the 9,784 Jigsaw comments of the validation split, in natural proportion.",
        quality([r for r in rows if len(r[1]["validation"]["labels"]) == 6]),
        "## Hate speech\n\nOn a tenth of Davidson's tweets, by the class of the highest score.",
        quality([r for r in rows if len(r[1]["validation"]["labels"]) != 6]),
        "## HateCheck\n\nShare of the cases that are judged rightly (the half of HateCheck with even numbers), overall "
        "and by functionality.",
        hatecheck([r for r in rows if r[1].get("hatecheck")]),
        "## Identity bias\n\nOn the intersectional madlibs: area under the ROC curve of all sentences, power means "
        "over identities of the three areas within and across them, their combination (1 is best), and the summed "
        "distances of identities' false positive and false negative rates from those of all (0 is best).",
        bias([r for r in rows if r[1].get("bias")]),
        "## Obfuscation\n\nMean ROC-AUC on the validation comments, and how much lower it is when half of their words "
        "are disguised, without and with the text normalizer.",
        obfuscation([r for r in rows if r[1].get("obfuscation")]),
    ]
    if (folder / THROUGHPUT).is_file():
        cost = json.loads((folder / THROUGHPUT).read_text(encoding="utf-8"))
        parts += [
            f"## What training costs\n\nAt full size with random weights where the real ones are not needed, on "
            f"{cost['machine']}, {cost['threads']} threads; linear models are fitted whole, of transformers these are "
            "the first steps, their slow start included: a whole run is faster.",
            bench.markdown(cost),
        ]
    return "\n\n".join(parts) + "\n"


def quality(rows: list[Row]) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda r: r[0],
        "made of": lambda r: made_of(r[1]),
        "scored by": lambda r: str(r[1]["model"].get("scored_by", "")),
        "comments": lambda r: f"{r[1]['validation']['comments']:,}",
        "ROC-AUC": lambda r: number(r[1]["validation"]["mean_roc_auc"]),
        "PR-AUC": lambda r: number(r[1]["validation"]["mean_pr_auc"]),
        "macro F1": lambda r: number(r[1]["validation"].get("macro_f1") or r[1]["validation"]["mean_f1"]),
    }
    return table(columns, rows)


def hatecheck(rows: list[Row]) -> str:
    def found(row: Row) -> Mapping[str, Any]:
        return next(v for k, v in row[1]["hatecheck"].items() if k.startswith("test_suite"))

    rows = [r for r in rows if any(k.startswith("test_suite") for k in r[1]["hatecheck"])]
    if not rows:
        return "Not measured yet."
    head = ["functionality", "cases", *(name for name, _ in rows)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    everything = [str(found(rows[0])["cases"]), *(f"**{found(r)['accuracy']:.1%}**" for r in rows)]
    lines.append(["**all**", *everything])
    for name, first in found(rows[0])["functionality"].items():
        shares = [f"{found(r)['functionality'][name]['accuracy']:.0%}" for r in rows]
        lines.append([name, str(first["cases"]), *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bias(rows: list[Row]) -> str:
    keys = {
        "all": "overall_auc",
        "subgroup": "subgroup_auc_power_mean",
        "BPSN": "bpsn_auc_power_mean",
        "BNSP": "bnsp_auc_power_mean",
        "combined": "bias_score",
        "FPED": "fped",
        "FNED": "fned",
    }
    columns: dict[str, Callable[[Row], str]] = {"model": lambda r: r[0]}
    for title, key in keys.items():
        columns[title] = lambda r, k=key: number(r[1]["bias"].get(k))  # type: ignore[misc]
    return table(columns, rows)


def obfuscation(rows: list[Row]) -> str:
    if not rows:
        return "Not measured yet."
    lines = ["| model | attack | ROC-AUC, off | drop, off | ROC-AUC, on | drop, on |", "|---|---|---:|---:|---:|---:|"]
    for name, content in rows:
        for attack, m in content["obfuscation"]["mean_roc_auc"].items():
            cells = [number(m[key]) for key in ("off", "drop_off", "on", "drop_on")]
            lines.append(f"| {name} | {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def made_of(content: Mapping[str, Any]) -> str:
    """The encoder or the features, in words, from the recipe that the artifact was trained by."""
    recipe = content.get("recipe") or {}
    encoder = recipe.get("encoder")
    if not encoder:
        linear = recipe.get("linear") or {}
        return f"TF-IDF, {linear.get('model')}" if linear else ""
    return str(encoder.get("pretrained") or f"{encoder['config']['model_type']}, from scratch")


def table(columns: Mapping[str, Callable[[Row], str]], rows: list[Row]) -> str:
    if not rows:
        return "Not measured yet."
    text = ("model", "made of", "scored by", "attack")
    lines = [list(columns), ["---" if c in text else "---:" for c in columns]]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
