from __future__ import annotations

import numpy as np
import pytest

from export.parity import Gate, GateFailed, check, check_fp32, compare, table
from export.repository import new_version

LABELS = ("a", "b")
THRESHOLDS = {"a": 0.5, "b": 0.5}
REFERENCE = np.array([[0.9, 0.2], [0.6, 0.2], [0.4, 0.2], [0.1, 0.2]])
TRUTH = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])


def test_differences_flips_and_areas_are_counted() -> None:
    candidate = REFERENCE.copy()
    candidate[1, 0] = 0.3  # falls below the threshold and below a negative comment
    report = compare(REFERENCE, candidate, TRUTH, LABELS, THRESHOLDS)
    assert report["max_difference"] == pytest.approx(0.3)
    assert report["flip_rate"] == pytest.approx(1 / 8)
    assert report["labels"]["a"]["roc_auc"] == [1.0, 0.75]
    assert report["labels"]["b"]["roc_auc"] == [None, None]
    assert report["mean_auc_drop"] == pytest.approx(0.25)
    assert "1.0000 -> 0.7500" in table(report)


def test_the_gate_names_each_limit_that_is_exceeded() -> None:
    candidate = REFERENCE.copy()
    candidate[1, 0] = 0.3
    report = compare(REFERENCE, candidate, TRUTH, LABELS, THRESHOLDS)
    with pytest.raises(
        GateFailed, match=r"falls by 0\.2500, allowed is 0\.002.*12\.50% of the decisions.*allowed is 0\.50%"
    ):
        check(report, Gate())
    check(report, Gate(max_auc_drop=0.25, max_flip_rate=0.125))
    with pytest.raises(GateFailed, match="--max-flip-rate"):
        check(report, Gate(max_auc_drop=0.25, max_flip_rate=0.12))


def test_scores_that_are_not_finite_pass_no_gate() -> None:
    candidate = REFERENCE.copy()
    report = compare(REFERENCE, candidate, TRUTH, LABELS, THRESHOLDS) | {"max_difference": float("nan")}
    with pytest.raises(GateFailed, match="differ by nan"):
        check_fp32(report)
    with pytest.raises(GateFailed, match="not finite"):
        check(report, Gate(1, 1))


def test_a_crash_while_writing_leaves_the_repository_as_it_was(tmp_path) -> None:  # noqa: ANN001
    repository = tmp_path / "r"
    with new_version(repository, ("m",)) as (number, staging):
        (staging / "m" / "config.pbtxt").write_text("one")
        assert number == 1
    with pytest.raises(KeyboardInterrupt), new_version(repository, ("m",)) as (number, staging):
        assert number == 2
        (staging / "m" / "config.pbtxt").write_text("two")
        raise KeyboardInterrupt
    assert (repository / "m" / "config.pbtxt").read_text() == "one"
    assert [p.name for p in (repository / "m").iterdir() if p.is_dir()] == ["1"]
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
