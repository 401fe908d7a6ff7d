"""Unintended bias: does a classifier score comments differently because of the identity that they name?

The areas and their combination: Borkan et al., "Nuanced metrics for measuring unintended bias with real data for text
classification", 2019. The spread of error rates: Dixon et al., "Measuring and mitigating unintended bias in text
classification", 2018.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.data import InvalidData, read_test_sentences
from train.metrics import roc_auc

POWER = -5.0
"""Of the mean over identities: the lower, the more the worst one counts."""

AREAS = ("subgroup_auc", "bpsn_auc", "bnsp_auc")

IDENTITY_TERMS: tuple[str, ...] = (
    *("woman", "man", "female", "male", "trans", "transgender", "nonbinary", "non-binary", "cis"),
    *("gay", "lesbian", "bisexual", "homosexual", "heterosexual", "straight", "queer", "lgbt", "lgbtq"),
    *("muslim", "christian", "jewish", "catholic", "protestant", "buddhist", "sikh", "taoist", "hindu", "atheist"),
    *("african american", "african", "american", "black", "white", "asian", "indian", "middle eastern", "european"),
    *("hispanic", "latino", "latina", "latinx", "mexican", "canadian", "chinese", "japanese"),
    *("blind", "deaf", "paralyzed", "disabled"),
    *(
        "old",
        "older",
        "young",
        "younger",
        "elderly",
        "middle aged",
        "middle-aged",
        "teenage",
        "millenial",
        "millennial",
    ),
)
"""What the madlibs' sentences name. A sentence that names several belongs to each of them."""

_TERM = re.compile(r"\b(" + "|".join(sorted(IDENTITY_TERMS, key=len, reverse=True)) + r")\b")


@dataclass(frozen=True)
class BiasSet:
    """Sentences, whether each is toxic, and which of them name an identity. *Shape:* ``(sentences,)`` each."""

    texts: list[str]
    toxic: np.ndarray
    groups: dict[str, np.ndarray]


def read_madlibs(path: Path) -> BiasSet:
    """Template sentences (CSV, also ``.gz``) with the columns ``phrase`` and ``toxicity``: toxic or nontoxic.

    The identities are found by :data:`IDENTITY_TERMS`; sentences without one, such as those about an occupation, are
    the background of all.

    :raises InvalidData: for a missing file or column, another toxicity, or when no sentence names an identity.
    """
    table = read_test_sentences(path, ("phrase", "toxicity"), "toxicity", ("toxic", "nontoxic"))
    texts = table["phrase"].tolist()
    groups = find_identities(texts)
    if not groups:
        raise InvalidData(f"no phrase of {path} names an identity of train.bias.IDENTITY_TERMS: add its terms there")
    return BiasSet(texts, (table["toxicity"] == "toxic").to_numpy(), groups)


def find_identities(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """For each term of :data:`IDENTITY_TERMS` that occurs: in which texts. BOOL. *Shape:* ``(texts,)``

    The longest term counts: "african american" is neither "african" nor "american".
    """
    groups: dict[str, np.ndarray] = {}
    for i, text in enumerate(texts):
        for term in set(_TERM.findall(text.lower())):
            groups.setdefault(term, np.zeros(len(texts), bool))[i] = True
    return {term: groups[term] for term in IDENTITY_TERMS if term in groups}


def identity_bias(
    scores: np.ndarray, labels: np.ndarray, groups: Mapping[str, np.ndarray], threshold: float | None = None
) -> dict[str, Any]:
    """How well the scores tell toxic from harmless comments within and across identities.

    For each identity three areas under the ROC curve, over

    - ``subgroup_auc``: the comments that name it;
    - ``bpsn_auc`` (background positive, subgroup negative): toxic comments without it and harmless ones with it; low
      where harmless comments score high because they name it;
    - ``bnsp_auc`` (background negative, subgroup positive): harmless comments without it and toxic ones with it; low
      where toxic comments are missed because they name it.

    An area is ``None`` where one of its sides is empty. ``bias_score`` is the sum of a quarter of the overall area and
    a quarter of each of the three power means (p = -5) over identities.

    With a ``threshold``, the false positive and false negative rates of each identity, and their summed distances from
    the rates of all comments: ``fped`` and ``fned``, 0 at best.

    :param scores: *Shape:* ``(comments,)``
    :param labels: 0 or 1, or NaN for unknown, which leaves the comment out. *Shape:* ``(comments,)``
    :param groups: for each identity, whether a comment names it. BOOL. *Shape:* ``(comments,)``
    """
    known = ~np.isnan(np.asarray(labels, np.float64))
    scores, truth = scores[known], np.asarray(labels)[known] > 0.5
    identities: dict[str, dict[str, Any]] = {}
    for name, mask in groups.items():
        inside = mask[known]
        bpsn, bnsp = inside ^ truth, inside == truth
        identities[name] = {
            "comments": int(inside.sum()),
            "positives": int((inside & truth).sum()),
            "subgroup_auc": roc_auc(scores[inside], truth[inside]),
            "bpsn_auc": roc_auc(scores[bpsn], truth[bpsn]),
            "bnsp_auc": roc_auc(scores[bnsp], truth[bnsp]),
        }
    overall = roc_auc(scores, truth)
    means = {area: power_mean([m[area] for m in identities.values()]) for area in AREAS}
    parts = [overall, *means.values()]
    present = [p for p in parts if p is not None]
    result: dict[str, Any] = {
        "comments": len(truth),
        "overall_auc": overall,
        **{f"{area}_power_mean": value for area, value in means.items()},
        "bias_score": sum(present) / 4 if len(present) == 4 else None,
        "identities": identities,
    }
    if threshold is not None:
        result |= _error_rates(scores >= threshold, truth, {k: m[known] for k, m in groups.items()}, identities)
        result["threshold"] = threshold
    return result


def power_mean(values: Sequence[float | None], power: float = POWER) -> float | None:
    """The generalised mean of the values that are not ``None``; ``None`` where all are, 0 where one is 0."""
    present = np.array([v for v in values if v is not None], np.float64)
    if not len(present):
        return None
    if power < 0 and (present == 0).any():
        return 0.0
    return float(np.mean(present**power) ** (1 / power))


def worst(result: Mapping[str, Any], area: str, count: int = 5) -> list[tuple[str, float]]:
    """The identities with the lowest ``area`` in the result of :func:`identity_bias`, the worst first."""
    found = [(name, float(m[area])) for name, m in result["identities"].items() if m[area] is not None]
    return sorted(found, key=lambda pair: pair[1])[:count]


def _error_rates(
    flagged: np.ndarray, truth: np.ndarray, groups: Mapping[str, np.ndarray], identities: dict[str, dict[str, Any]]
) -> dict[str, float | None]:
    """Add ``fpr`` and ``fnr`` to each identity. Returns the rates of all comments and the summed distances."""
    rates: dict[str, float | None] = {}
    for rate, wrong, side, distance in (("fpr", flagged, ~truth, "fped"), ("fnr", ~flagged, truth, "fned")):
        every = float(wrong[side].mean()) if side.any() else None
        for name, mask in groups.items():
            of_group = side & mask
            identities[name][rate] = float(wrong[of_group].mean()) if of_group.any() else None
        spread = [abs(m[rate] - every) for m in identities.values() if every is not None and m[rate] is not None]
        rates |= {rate: every, distance: sum(spread) if spread else None}
    return rates
