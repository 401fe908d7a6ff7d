"""The page of results says what the files say, and the benchmark of training measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train import results
from train.__main__ import main
from train.bench import bench
from train.config import InvalidConfig


def test_the_page_is_what_the_files_say() -> None:
    assert main(["results", "--check"]) == 0


def test_a_page_is_made_of_the_files_in_a_folder(tmp_path: Path) -> None:
    labels = {name: {} for name in "abcdef"}
    content = {
        "model": {"scored_by": "torch"},
        "recipe": {"encoder": {"pretrained": "some-encoder", "config": None}},
        "validation": {"comments": 9784, "mean_roc_auc": 0.99, "mean_pr_auc": 0.7, "macro_f1": 0.65, "labels": labels},
        "hatecheck": {
            "test_suite_cases_even": {
                "cases": 4,
                "accuracy": 0.75,
                "functionality": {"slur_h": {"cases": 4, "hateful": 4, "accuracy": 0.75}},
            }
        },
        "bias": {"overall_auc": 0.9, "bias_score": None},
        "obfuscation": {"mean_roc_auc": {"leet": {"off": 0.9, "drop_off": 0.09, "on": 0.985, "drop_on": 0.005}}},
    }
    (tmp_path / "some.json").write_text(json.dumps(content))
    page = results.render(tmp_path)
    assert "| some | some-encoder | torch | 9,784 | 0.9900 | 0.7000 | 0.6500 |" in page
    assert "| **all** | 4 | **75.0%** |\n| slur_h | 4 | 75% |" in page
    assert "| some | 0.9000 | - | - | - | - | - | - |" in page
    assert "| some | leet | 0.9000 | 0.0900 | 0.9850 | 0.0050 |" in page
    assert "Not measured yet." in page  # hate speech
    results.write(tmp_path, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.md", "some.json"]


@pytest.mark.slow
def test_the_benchmark_measures_a_transformer_at_full_size_and_a_linear_model(
    comments_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "throughput.json"
    found = bench(comments_csv, ["baseline-svm", "compact"], 2, out)
    assert json.loads(out.read_text()) == found
    linear, compact = found["recipes"].values()
    assert compact["comments"] == 2 * 128 and compact["comments_per_s"] > 0
    assert compact["parameters"] == compact["trained"] > 1_700_000
    assert linear["comments"] > 600 and linear["peak_memory_bytes"] < compact["peak_memory_bytes"]
    with pytest.raises(InvalidConfig, match="no recipe none: choose from baseline-logreg"):
        bench(comments_csv, ["none"], 2, None)
