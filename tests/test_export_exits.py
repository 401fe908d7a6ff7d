from __future__ import annotations

from dataclasses import replace

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
    return Judged(encoder, scores, (rng.random(logits.shape) < encoder).astype(float))


def test_the_upper_limit_is_that_of_tables() -> None:
    # none of n: 1 - 0.05 ** (1 / n); 1 of 20: the classic 0.2161
    assert exits.upper_limit(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert exits.upper_limit(1, 20) == pytest.approx(0.2161, abs=1e-4)
    assert exits.upper_limit(5, 5) == 1.0


def test_the_limit_on_decisions_takes_the_comment_as_the_unit() -> None:
    def limit(*shares: float, of: int = 1000) -> float:
        return exits.mean_upper_limit(np.array([*shares, *[0.0] * (of - len(shares))]))

    # whole comments: the exact Poisson limits of tables, 2.996, 4.744 and 6.296
    assert [1000 * limit(*[1.0] * n) for n in range(3)] == pytest.approx([2.996, 4.744, 6.296], abs=1e-3)
    # six decisions of one comment say more than six of as many comments, and all stay above the mean
    assert limit(1.0) > limit(*[1 / 6] * 6) > 0.001
    assert limit(*[1.0] * 10, of=10) == 1.0


def test_the_limit_on_decisions_holds_for_dependent_decisions() -> None:
    rng = np.random.default_rng(7)
    truly, held = 0.004 * (0.7 * 1 + 0.3 * 6) / 6, []
    for _ in range(400):
        changed = rng.random(4000) < 0.004
        held.append(exits.mean_upper_limit(changed * np.where(rng.random(4000) < 0.7, 1, 6) / 6) >= truly)
    assert 0.95 <= np.mean(held) < 1  # it is a limit, and not a useless one


def test_knots_put_a_stage_on_the_encoders_scale_in_its_own_order() -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(-2, 1, (2000, 2))
    encoder = 1 / (1 + np.exp(-(2 * logits - 1)))
    for label, (own, worth) in enumerate(exits.fit_knots(logits, encoder)):
        inner = np.sort(logits[:, label])[20:-20]
        np.testing.assert_allclose(np.interp(inner, own, worth), 2 * inner - 1, atol=0.05)
        assert (np.diff(own) >= 0).all() and (np.diff(worth) >= 0).all()


def test_comments_are_answered_by_the_first_sure_stage_and_changes_are_counted() -> None:
    encoder = np.array([[0.9, 0.1], [0.1, 0.1], [0.6, 0.3], [0.4, 0.1]], np.float32)
    first = np.array([[0.97, 0.01], [0.3, 0.01], [0.01, 0.01], [0.5, 0.01]], np.float32)
    second = np.array([[0.5, 0.5], [0.04, 0.01], [0.5, 0.5], [0.04, 0.15]], np.float32)
    limits = np.array([[0.05, 0.95], [0.1, 0.9]])
    found = exits.apply(Judged(encoder, [first, second], encoder), [limits, limits], THRESHOLDS)
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


@pytest.mark.parametrize("count", exits.COUNTS)
def test_the_chosen_exits_keep_the_bound_on_other_comments(count: str) -> None:
    curves, validation = exits.fit_curves(made(3000, 3), THRESHOLDS), made(20000, 4)
    ladder = exits.ladder(curves, 0.5, THRESHOLDS)
    found = [exits.apply(validation, step, THRESHOLDS).changed for step in ladder]
    truly = [changed.any(axis=1).mean() if count == "comments" else changed.mean() for changed in found]
    kept = []
    for seed in range(40):
        tuning = made(3000, 100 + seed)
        limits = [exits.apply(tuning, step, THRESHOLDS).limit(count) for step in ladder]
        chosen = exits.choose([{"tuning": {"upper_limit": {count: limit}}} for limit in limits], count, 0.01)
        assert chosen is not None
        kept.append(truly[chosen] <= 0.01)
    assert 0.85 <= np.mean(kept)


def test_the_curve_counts_and_adds_up() -> None:
    path, tuning, validation = made(3000, 3), made(1000, 5), made(1000, 6)
    lengths = np.linspace(1, 3, 1000)
    rows = exits.curve(path, tuning, validation, NAMES, THRESHOLDS, [10.0, 100.0, 500 * lengths], 5.0, 2)
    assert len(rows) == len(exits.RISKS)
    row = rows[len(rows) // 2]
    by, cost = row["validation"]["answered_by"], row["cpu_us"]
    found = exits.apply(validation, [np.array(limits) for limits in row["exits"]], THRESHOLDS)
    assert by == [float((found.by == number).mean()) for number in range(3)] and 0 < by[2] < 0.5
    assert row["validation"]["changed_comments"] == found.changed_comments
    assert row["validation"]["missed"] + row["validation"]["invented"] == found.changed.sum()
    assert cost == pytest.approx(5 + 10 + 100 * (by[1] + by[2]) + 500 * lengths[found.by == 2].sum() / 1000)
    assert row["comments_per_s"] == pytest.approx(2e6 / cost)
    assert row["speedup"] == pytest.approx(1005 / cost)


def test_an_earlier_stage_takes_a_part_of_the_risk() -> None:
    curves = exits.fit_curves(made(3000, 1), THRESHOLDS)
    steps = exits.ladder(curves, 0.1, THRESHOLDS)
    for step, risk in zip(steps, exits.RISKS, strict=True):
        np.testing.assert_array_equal(step[1], exits.exits_at(risk, curves[1], THRESHOLDS))
        np.testing.assert_array_equal(step[0], exits.exits_at(risk * 0.1, curves[0], THRESHOLDS))


def test_the_ratio_is_the_smallest_that_costs_as_little_as_any_within_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = made(3000, 3)
    curves = exits.fit_curves(path, THRESHOLDS)

    def found(middle_us: float) -> float:
        return exits.choose_shape(path, curves, THRESHOLDS, [1.0, middle_us, 1000.0], "decisions", 0.02)[0]

    assert found(1.0) < found(900.0)  # a second stage that costs nothing: the first one need not risk much
    assert exits.choose_shape(path, curves[:1], THRESHOLDS, [1.0, 9.0], "comments", 0.02) == (1.0, 0.0)
    alike = found(600.0)
    monkeypatch.setattr(exits, "ALIKE", 1.0)
    assert alike < found(600.0)  # cheapest of all, by less than can be told


def test_long_comments_are_answered_at_a_higher_risk_where_they_cost_more() -> None:
    rng = np.random.default_rng(0)
    path = replace(made(2000, 3), lengths=rng.integers(1, 900, 2000))
    curves = exits.fit_curves(path, THRESHOLDS)
    assert path.lengths is not None
    assert path.classes.tolist() == [sum(n >= edge for edge in exits.LENGTHS) for n in path.lengths]
    cost = np.asarray(path.lengths, np.float64) ** 2

    def shape(cpu_us: np.ndarray) -> float:
        return exits.choose_shape(path, curves, THRESHOLDS, [1.0, 1.0, cpu_us], "decisions", 0.02)[1]

    assert shape(cost) > 0
    bold = exits.boldness(path, cost, 0.5)
    assert bold.shape == (8,) and (np.diff(bold) > 0).all() and bold[0] < 1 < bold[-1]
    short = path.classes == 0
    assert bold[0] == pytest.approx((cost[short].mean() / cost.mean()) ** 0.5)
    np.testing.assert_allclose(exits.boldness(path, np.ones(2000), 1.0), 1)
    for step, plain in zip(
        exits.ladder(curves, 0.5, THRESHOLDS, bold), exits.ladder(curves, 0.5, THRESHOLDS), strict=True
    ):
        for limits, usual in zip(step, plain, strict=True):
            assert limits.shape == (8, *usual.shape)
            assert (limits[0, :, 0] <= usual[:, 0]).all() and (limits[-1, :, 0] >= usual[:, 0]).all()
            assert (limits[..., 0] < THRESHOLDS).all() and (limits[..., 1] >= THRESHOLDS).all()
    one = np.array([[[0.1, 0.9]] * len(NAMES)] * 7 + [[[0.4, 0.6]] * len(NAMES)])
    scores = np.full((2, len(NAMES)), 0.3)
    judged = Judged(scores, [scores], scores, np.array([599, 600]))
    assert exits.apply(judged, [one], THRESHOLDS).by.tolist() == [1, 0]


def test_the_climb_ends_at_the_first_step_beyond_the_bound() -> None:
    def rows(*limits: float, drops: float = 0.0) -> list[dict[str, dict[str, object]]]:
        return [
            {"tuning": {"upper_limit": {"comments": limit}, "mean_roc_auc": [0.9, 0.9 - drops * step]}}
            for step, limit in enumerate(limits)
        ]

    assert exits.choose(rows(0.001, 0.002, 0.004, 0.002), "comments", 0.003) == 1
    assert exits.choose(rows(0.001, 0.002), "comments", 0.003) == 1
    assert exits.choose(rows(0.004, 0.001), "comments", 0.003) is None
    assert exits.choose(rows(0.001, 0.001, 0.001, drops=0.01), "comments", 0.003, 0.015) == 1
    assert exits.choose(rows(0.001, 0.001, drops=-0.01), "comments", 0.003, 0.001) == 1  # a gain is no drop
