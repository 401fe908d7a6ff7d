from __future__ import annotations

import json
from pathlib import Path

from export import results


def test_the_page_is_what_the_files_say() -> None:
    assert results.main(["--check"]) == 0


def test_a_page_is_made_of_the_reports_in_a_folder(tmp_path: Path) -> None:
    form = {"bytes": 2_000_000, "comments_per_s": {"1 comment a request": 50.0}, "max_difference": 0.1}
    report = {
        "artifact": "some",
        "settings": {"precision": "int8"},
        "machine": "a processor",
        "git_commit": "0123456789abcdef",
        "model_version": "1.0.0",
        "form": "int8 dynamic",
        "bytes": 2_000_000,
        "comparison": {
            "comments": 2000,
            "max_difference": 0.1,
            "labels": {"a": {"roc_auc": [0.98, 0.97]}, "b": {"roc_auc": [0.96, 0.95]}, "c": {"roc_auc": [None, None]}},
            "bias": {"max_shift": 0.002, "identities": 48},
        },
        "neighbour_effect": {"max_difference": 0.03, "mean_difference": 0.0004},
        "candidates": [
            {**form, "name": "fp32", "mean_auc_drop": None, "max_flip_rate": None, "failures": []},
            {**form, "name": "int8 dynamic", "mean_auc_drop": 0.0002, "max_flip_rate": 0.0025, "failures": []},
            {**form, "name": "int8 static", "mean_auc_drop": 0.02, "max_flip_rate": 0.1, "failures": ["falls"]},
        ],
    }
    (tmp_path / "one.json").write_text(json.dumps(report))
    page = results.render(tmp_path)
    assert (
        "## one\n\nArtifact some, int8; 2,000 comments; a processor; commit 0123456789ab; model version 1.0.0." in page
    )
    assert "| fp32 | 2.0 | 50.0 | - | - |  |" in page
    assert "| int8 dynamic | 2.0 | 50.0 | +0.00020 | 0.25% | passes |" in page
    assert "| int8 static | 2.0 | 50.0 | +0.02000 | 10.00% | falls |" in page
    assert "Mean ROC-AUC 0.9700 -> 0.9600." in page
    assert "over 48 identities, shifts by 0.0020" in page and "Neighbours: at most 0.0300" in page


def test_a_page_tells_of_tokenizers(tmp_path: Path) -> None:
    some = {"compared": 1000, "differences": 3, "by_class": {"real: a.csv": 1, "emoji": 2}, "examples": {}}
    report = {
        "tokenizer": "WordPiece",
        "tokenizer_file": "starter",
        "vocabulary": 30522,
        "strings": 1000,
        "classes": {"real: a.csv": 400, "emoji": 600},
        "versions": {"tokenizers": "0.22.2", "quick": "1.0"},
        "libraries": {"quick": some, "exact": {**some, "differences": 0, "by_class": {}}},
        "absent": {"slow": "not installed"},
        "cpu_us_per_comment": {
            "tokenizers: encode": {"1": 90.0, "16": 80.04},
            "quick": {"1": 9.0, "16": 8.0},
            "exact": {"1": 10.0, "16": 9.0},
        },
        "mean_characters": 210.4,
        "machine": "a processor",
        "git_commit": "0123456789abcdef",
    }
    (tmp_path / "tokenizers.json").write_text(json.dumps(report))
    page = results.render(tmp_path)
    assert (
        "## tokenizers\n\nThe tokenizer of starter (WordPiece, 30,522 tokens) on 1,000 texts, of which 400 are" in page
    )
    assert "| tokenizers: encode |  |  |  | 90.0 | 80.0 |" in page
    assert "| quick | 1,000 | 3 | 1 | 9.0 | 8.0 |" in page
    assert "The same ids on all texts: exact.\nNot compared: slow (not installed)." in page
