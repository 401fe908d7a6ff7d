from __future__ import annotations

import numpy as np
import pytest

from export import exits
from export.exits import Judged

THRESHOLDS = np.array([0.5, 0.2])
NAMES = ("a", "b")


def made(comments: int, seed: int, noise: float = 0.4) -> Judged:
    """An encoder, and two stages that know the more of it the later they come."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-4, 3, (comments, 2))
    stages = [logits + rng.normal(0, size, logits.shape) for size in (2 * noise, noise)]
    encoder, *scores = ((1 / (1 + np.exp(-z))).astype(np.float32) for z in (logits, *stages))
    return Judged(encoder, scores)


def test_the_upper_limit_is_that_of_tables() -> None:
    # none of n: 1 - 0.05 ** (1 / n); 1 of 20: the classic 0.2161
    assert exits.upper_limit(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert exits.upper_limit(1, 20) == pytest.approx(0.2161, abs=1e-4)
    assert exits.upper_limit(5, 5) == 1.0


def test_comments_are_answered_by_the_first_sure_stage_and_changes_are_counted() -> None:
    encoder = np.array([[0.9, 0.1], [0.1, 0.1], [0.6, 0.3], [0.4, 0.1]], np.float32)
    first = np.array([[0.97, 0.01], [0.3, 0.01], [0.01, 0.01], [0.5, 0.01]], np.float32)
    second = np.array([[0.5, 0.5], [0.04, 0.01], [0.5, 0.5], [0.04, 0.15]], np.float32)
    limits = np.array([[0.05, 0.95], [0.1, 0.9]])
    found = exits.apply(Judged(encoder, [first, second]), [limits, limits], THRESHOLDS)
    assert found.by.tolist() == [0, 1, 0, 2]
    assert found.scores.tolist() == [first[0].tolist(), second[1].tolist(), first[2].tolist(), encoder[3].tolist()]
    assert found.changed.tolist() == [[False, False], [False, False], [True, True], [False, False]]
    assert found.changed_comments == 1  # however many of its labels


def test_the_ladder_climbs_from_careful_to_bold_and_never_against_a_threshold() -> None:
    curves = exits.fit_curves(made(3000, 1), THRESHOLDS)
    steps = [exits.exits_at(risk, curves[0], THRESHOLDS) for risk in exits.RISKS]
    for careful, bold in zip(steps, steps[1:], strict=False):
        assert (bold[:, 0] >= careful[:, 0]).all() and (bold[:, 1] <= careful[:, 1]).all()
    for step in steps:
        assert (step[:, 0] < THRESHOLDS).all() and (step[:, 1] >= THRESHOLDS).all()
    # a stage that knows nothing, or the contrary, is never sure
    assert exits.exits_at(0.4, [(-1.0, 0.0), (1.0, 0.0)], THRESHOLDS)[0].tolist() == list(exits.NEVER)


def test_a_label_that_is_never_flagged_is_taken_at_its_word() -> None:
    judged = made(600, 2)
    judged.encoder[:, 1] = 0.01
    curves = exits.fit_curves(judged, THRESHOLDS)
    assert curves[0][1] == (1.0, 0.0) and curves[0][0] != (1.0, 0.0)


def test_the_chosen_exits_keep_the_bound_on_other_comments() -> None:
    curves, validation = exits.fit_curves(made(3000, 3), THRESHOLDS), made(20000, 4)
    ladder = [[exits.exits_at(risk, own, THRESHOLDS) for own in curves] for risk in exits.RISKS]
    truly = [exits.apply(validation, step, THRESHOLDS).changed_comments / len(validation) for step in ladder]
    kept = []
    for seed in range(40):
        tuning = made(3000, 100 + seed)
        limits = [
            exits.upper_limit(exits.apply(tuning, step, THRESHOLDS).changed_comments, len(tuning)) for step in ladder
        ]
        chosen = exits.choose([{"tuning": {"upper_limit": limit}} for limit in limits], 0.01)
        assert chosen is not None
        kept.append(truly[chosen] <= 0.01)
    assert 0.85 <= np.mean(kept)


def test_the_curve_counts_and_adds_up() -> None:
    path, tuning, validation = made(3000, 3), made(1000, 5), made(1000, 6)
    truth = (validation.encoder > 0.5).astype(float)
    rows = exits.curve(path, tuning, validation, truth, NAMES, THRESHOLDS, [10.0, 100.0, 1000.0], 5.0, 2)
    assert len(rows) == len(exits.RISKS)
    row = rows[len(rows) // 2]
    by, cost = row["validation"]["answered_by"], row["cpu_us"]
    found = exits.apply(validation, [np.array(limits) for limits in row["exits"]], THRESHOLDS)
    assert by == [float((found.by == number).mean()) for number in range(3)] and 0 < by[2] < 0.5
    assert row["validation"]["changed_comments"] == found.changed_comments
    assert row["validation"]["missed"] + row["validation"]["invented"] == found.changed.sum()
    assert cost == pytest.approx(5 + 10 + 100 * (by[1] + by[2]) + 1000 * by[2])
    assert row["comments_per_s"] == pytest.approx(2e6 / cost)
    assert row["speedup"] == pytest.approx(1005 / cost)


def test_the_climb_ends_at_the_first_step_beyond_the_bound() -> None:
    def rows(*limits: float) -> list[dict[str, dict[str, float]]]:
        return [{"tuning": {"upper_limit": limit}} for limit in limits]

    assert exits.choose(rows(0.001, 0.002, 0.004, 0.002), 0.003) == 1
    assert exits.choose(rows(0.001, 0.002), 0.003) == 1
    assert exits.choose(rows(0.004, 0.001), 0.003) is None
