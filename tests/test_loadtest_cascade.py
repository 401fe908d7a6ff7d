from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loadtest import bench, cascade
from loadtest.bench import Round


def turns(number: int, alone: float, early: float, **more: Any) -> list[Round]:
    cost = {"cpu_us_per_comment": 8000.0, "p50_ms": 5.0, "p99_ms": 9.0}
    first = Round(number, "tritox", 16, comments_per_s=alone, **cost)
    return [first, Round(number, "tritox:m_cascade", 16, comments_per_s=early, **{**cost, **more})]


def test_areas_are_those_of_scikit_learn_with_ties_too() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((500, 3)) < [0.5, 0.1, 0.0]).astype(float)  # the last label has no positives: it is left out
    scores = np.round(rng.random((500, 3)) + 0.2 * truth, 1)
    expected = np.mean([roc_auc_score(truth[:, i], scores[:, i]) for i in range(2)])
    assert cascade.mean_roc_auc(scores, truth) == pytest.approx(expected)


def test_decisions_are_counted_label_by_label() -> None:
    alone = np.array([[0.6, 0.1], [0.4, 0.1], [0.5, 0.9]])
    early = np.array([[0.4, 0.3], [0.4, 0.1], [0.5, 0.9]])
    found = cascade.differences(alone, early, np.array([0.5, 0.2]))
    assert found == {"changed_decisions": 2 / 6, "changed_comments": 1 / 3, "missed": 1, "invented": 1}


def test_ratios_are_formed_within_a_round_and_invalid_ones_do_not_count() -> None:
    rounds = [*turns(0, 100, 1000), *turns(1, 50, 600), *turns(2, 200, 1900, cpu_us_per_comment=800.0)]
    rounds += turns(3, 1, 1000, invalid=["the load generator was busy"])
    found = cascade.rate(rounds, 16, "tritox", "tritox:m_cascade")
    assert (found["ratio"], found["least"], found["greatest"], found["rounds"]) == (10, 9.5, 12, 3)
    assert found["alone"]["comments_per_s"] == 100 and found["cascade"]["comments_per_s"] == 1000
    with pytest.raises(bench.BenchFailed, match="no round of 64 comments a request is valid of both"):
        cascade.rate(rounds, 64, "tritox", "tritox:m_cascade")


def test_the_cache_of_the_served_version_is_off(tmp_path: Path) -> None:
    with pytest.raises(bench.BenchFailed, match="m_cascade is not in the repository: write it with"):
        cascade.switch_cache_off(tmp_path / "m_cascade")
    for number in ("2", "10"):
        (tmp_path / "m_cascade" / number).mkdir(parents=True)
        settings = {"cache_bytes": 5, "stages": [{"name": f"n{number}"}], "labels": ["a"]}
        (tmp_path / "m_cascade" / number / "settings.json").write_text(json.dumps(settings))
    assert cascade.switch_cache_off(tmp_path / "m_cascade") == {"name": "m_cascade", "stages": ["n10"]}
    now = [json.loads((tmp_path / "m_cascade" / n / "settings.json").read_text())["cache_bytes"] for n in ("2", "10")]
    assert now == [5, 0]


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cascade.main(["--artifact", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
