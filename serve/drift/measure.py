"""How far two samples are apart, and whether that is much.

PSI = sum over bins of (found - expected) * ln(found / expected), in shares. Below 0.1 nothing is said to have changed,
from 0.25 on much has: Siddiqi, "Credit Risk Scorecards", 2006. Those limits know nothing of the samples' sizes: where
nothing has changed, PSI * 1 / (1/n + 1/m) is distributed as chi-squared with (bins - 1) degrees of freedom (Yurdakul,
"Statistical properties of population stability index", 2018), so that few comments alone can pass for drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SOME, MUCH = 0.1, 0.25
"""Of PSI."""
SOME_RATIO, MUCH_RATIO = 1.5, 2.0
"""Of two rates, the larger to the smaller. Ours: a rate of 2% that becomes 4% is a PSI of 0.01 only."""
CHANCE_Z = 3.29
"""Of a normal distribution: beyond it on either side in one of 1000 samples in which nothing has changed."""
STEADY, MOVED, DRIFTED = 0, 1, 2
VERDICTS = ("steady", "moved", "drifted")


@dataclass(frozen=True)
class Finding:
    """One comparison with the reference.

    :param what: ``score``, ``length``, ``language``, ``flag_rate``; of curated sets the measure's name.
    :param group: a label, a language, an identity term, a curated set and a label; empty for all comments.
    :param value: PSI, the ratio of rates, or the difference of measures.
    :param chance: what chance alone gives, in the same unit; ``None`` where the comments are the same.
    :param reference: the rate then, and ``found`` that now; ``None`` for PSI.
    :param comments: that were looked at now.
    """

    what: str
    group: str
    value: float
    chance: float | None
    verdict: int
    comments: int
    reference: float | None = None
    found: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": VERDICTS[self.verdict]}


def psi(expected: np.ndarray, found: np.ndarray) -> float:
    """:param expected: comments in each bin. Half a comment is added to each, so that an empty one is no infinity."""
    one = (expected + 0.5) / (expected.sum() + 0.5 * len(expected))
    other = (found + 0.5) / (found.sum() + 0.5 * len(found))
    return float(((other - one) * np.log(other / one)).sum())


def chance_of_psi(expected: np.ndarray, found: np.ndarray) -> float:
    """The PSI that is passed in one of 1000 samples in which nothing has changed."""
    freedom = int(((expected + found) > 0).sum()) - 1
    if freedom < 1:
        return 0.0
    # Wilson and Hilferty's approximation of the 99.9th percentile of chi-squared
    most = freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(most * (1 / expected.sum() + 1 / found.sum()))


def compare_shares(
    what: str, group: str, expected: Sequence[float] | np.ndarray, found: Sequence[float] | np.ndarray
) -> Finding:
    """:param expected: comments in each bin, then; ``found``: now. Neither may be empty altogether."""
    then, now = np.array(expected, np.float64), np.array(found, np.float64)
    value, chance = psi(then, now), chance_of_psi(then, now)
    verdict = STEADY if value < max(SOME, chance) else MOVED if value < MUCH else DRIFTED
    return Finding(what, group, value, chance, verdict, int(now.sum()))


def compare_rates(group: str, flagged_then: int, then: int, flagged_now: int, now: int, tests: int = 1) -> Finding:
    """Flagged comments of all comments, then and now.

    :param tests: rates that are compared at once; the more, the more of them are off by chance.
    """
    rate_then, rate_now = (flagged_then + 0.5) / (then + 1), (flagged_now + 0.5) / (now + 1)
    ratio = rate_now / rate_then
    # the logarithm of a ratio of rates is about normal, with this deviation
    deviation = math.sqrt((1 - rate_then) / (rate_then * (then + 1)) + (1 - rate_now) / (rate_now * (now + 1)))
    chance = math.exp(beyond(tests) * deviation)
    size = max(ratio, 1 / ratio)
    verdict = STEADY if size < max(SOME_RATIO, chance) else MOVED if size < MUCH_RATIO else DRIFTED
    return Finding("flag_rate", group, ratio, chance, verdict, now, flagged_then / then, flagged_now / now)


def beyond(tests: int) -> float:
    """How many deviations off one of ``tests`` values is in one of 1000 cases (Bonferroni)."""
    # the tail of a normal distribution is about exp(-z * z / 2) / (z * 2.5); twice refined
    z = CHANCE_Z
    for _ in range(8):
        z = math.sqrt(max(1.0, 2 * math.log(2 * max(1, tests) / 0.001 / (z * math.sqrt(2 * math.pi)))))
    return z
