from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.onnx import main as export
from export.scoremap import equal_flag_rate, equal_precision, main, score_map

SCORES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=60)


@given(SCORES, st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_mapped_threshold_flags_as_many_where_no_scores_are_equal(old: list[float], cut: float, rng) -> None:  # noqa: ANN001
    new = [i / (len(old) + 1) + 1e-3 for i in range(len(old))]
    rng.shuffle(new)
    before, after = np.array(old), np.array(new)
    mapped = equal_flag_rate(before, after, cut)
    assert (after >= mapped).sum() == (before >= cut).sum()


@given(SCORES, st.floats(0, 1), st.data())
def test_the_mapped_threshold_is_as_precise_and_the_lowest_such(
    old: list[float], cut: float, data: st.DataObject
) -> None:
    n = len(old)
    new = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.6, 0.9]), min_size=n, max_size=n)))
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), float)
    before = np.array(old)
    mapped = equal_precision(before, new, truth, cut)
    possible = [
        c
        for c in np.unique(new)
        if (before >= cut).any() and truth[new >= c].mean() >= truth[before >= cut].mean() - 1e-12
    ]
    if not possible:
        assert mapped is None
    else:
        assert mapped is not None
        assert (new >= mapped).sum() == (new >= min(possible)).sum()


def test_a_monotone_change_of_scores_is_undone_without_a_changed_decision() -> None:
    rng = np.random.default_rng(5)
    old = rng.random((5000, 2))
    truth = (rng.random((5000, 2)) < old).astype(float)
    found = score_map(old, old**3, ("a", "b"), {"a": [0.2, 0.5], "b": [0.9]}, truth)
    assert [row["new"] for row in found["a"]] == pytest.approx([0.008, 0.125], abs=2e-3)
    for row in (*found["a"], *found["b"]):
        assert row["changed"] == 0 and row["flagged_old"] == row["flagged_new"]
        assert row["precision_old"] == row["precision_new"]


@pytest.fixture(scope="module")
def repository(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoremap") / "r"
    call = ["--artifact", str(artifact), "--repository", str(folder), "--comments", "100"]
    loose = ["--max-flip-rate", "0.05", "--max-auc-drop", "0.01", "--max-bias-shift", "0.05"]
    assert export([*call, "--quantize", "none"]) == 0
    assert export([*call, "--quantize", "int8", *loose]) == 0
    return folder


def test_two_versions_are_mapped_on_an_artifacts_comments(
    repository: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        "--repository",
        str(repository),
        "--old",
        "1",
        "--new",
        "2",
        "--comments",
        str(artifact / "validation.jsonl"),
    ]
    assert main([*call, "--json", str(tmp_path / "map.json")]) == 0
    result = json.loads((tmp_path / "map.json").read_text())
    assert result["comments"] == 150 and result["equal"] == "flag-rate"
    for rows in result["labels"].values():
        for row in rows:
            assert abs(row["flagged_old"] - row["flagged_new"]) <= 0.02
            assert row["changed"] <= 0.05
    assert "insult" in capsys.readouterr().out
    assert main([*call, "--equal", "precision", "--threshold", "insult=0.5"]) == 0
    assert main([*call, "--new", "1", "--threshold", "insult=0.5", "--json", str(tmp_path / "same.json")]) == 0
    (row,) = json.loads((tmp_path / "same.json").read_text())["labels"]["insult"]
    assert row["changed"] == 0


def test_wrong_calls_are_one_line(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comments = tmp_path / "comments.txt"
    comments.write_text("you idiot\n\nthe map\n")
    call = ["--repository", str(repository), "--old", "1", "--new", "2", "--comments", str(comments)]
    assert main(call) == 0  # lines of text do
    capsys.readouterr()
    for more, reason in (
        (["--new", "7"], "toxicity has no version 7; it has 1, 2"),
        (["--equal", "precision"], "--equal precision needs labels"),
        (["--threshold", "rude=0.5"], "--threshold is 'rude=0.5', must be a label and a number in [0, 1]"),
        (["--threshold", "toxic=2"], "--threshold is 'toxic=2'"),
        (["--comments", str(tmp_path / "none")], "cannot be read"),
        (["--name", "other"], "has no model 'other'"),
    ):
        assert main([*call, *more]) == 2
        assert reason in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"no": 1}\n')
    assert main([*call, "--comments", str(rows)]) == 2
    assert "rows.jsonl, line 2 is no JSON object with a text" in capsys.readouterr().err
