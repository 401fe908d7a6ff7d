from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.bias import find_identities, identity_bias, power_mean, read_madlibs, worst
from train.data import InvalidData

# four comments that name the identity (0.9+ 0.6- 0.5- 0.2+), four that do not (0.8+ 0.7+ 0.4- 0.1-)
SCORES = np.array([0.9, 0.6, 0.5, 0.2, 0.8, 0.7, 0.4, 0.1])
LABELS = np.array([1, 0, 0, 1, 1, 1, 0, 0])
GROUP = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)


def test_areas_worked_out_by_hand() -> None:
    result = identity_bias(SCORES, LABELS, {"a": GROUP})
    found = result["identities"]["a"]
    assert (found["comments"], found["positives"]) == (4, 2)
    assert found["subgroup_auc"] == pytest.approx(2 / 4)  # 0.9 beats both, 0.2 none
    assert found["bpsn_auc"] == pytest.approx(4 / 4)  # 0.8 and 0.7 outside against 0.6 and 0.5 inside
    assert found["bnsp_auc"] == pytest.approx(3 / 4)  # 0.9 and 0.2 inside against 0.4 and 0.1 outside
    assert result["overall_auc"] == pytest.approx((4 + 4 + 4 + 1) / 16)
    assert result["bias_score"] == pytest.approx((13 / 16 + 0.5 + 1.0 + 0.75) / 4)


def test_error_rates_worked_out_by_hand() -> None:
    result = identity_bias(SCORES, LABELS, {"a": GROUP, "b": ~GROUP}, threshold=0.55)
    # flagged: 0.9+ 0.6- 0.8+ 0.7+; so one of four harmless comments is flagged, one of four toxic ones is missed
    assert (result["fpr"], result["fnr"]) == (0.25, 0.25)
    assert (result["identities"]["a"]["fpr"], result["identities"]["a"]["fnr"]) == (0.5, 0.5)
    assert (result["identities"]["b"]["fpr"], result["identities"]["b"]["fnr"]) == (0.0, 0.0)
    assert (result["fped"], result["fned"]) == (0.5, 0.5)


def test_power_mean_leans_to_the_worst() -> None:
    assert power_mean([0.5, 1.0]) == pytest.approx(((2**5 + 1) / 2) ** (-1 / 5))
    assert power_mean([0.8, None, 0.8]) == pytest.approx(0.8)
    assert power_mean([0.0, 1.0]) == 0.0
    assert power_mean([None]) is None


def test_an_identity_with_one_class_has_no_area_within_it() -> None:
    group = np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    result = identity_bias(SCORES, LABELS, {"a": group, "b": GROUP})
    assert result["identities"]["a"]["subgroup_auc"] is None
    assert result["identities"]["a"]["bpsn_auc"] is None
    assert result["identities"]["a"]["bnsp_auc"] == 1.0
    assert result["subgroup_auc_power_mean"] == pytest.approx(0.5)
    assert identity_bias(SCORES, LABELS, {"a": group})["bias_score"] is None
    assert worst(result, "bnsp_auc") == [("b", 0.75), ("a", 1.0)]


def test_comments_of_unknown_label_are_left_out() -> None:
    labels = np.append(LABELS, np.nan)
    more = identity_bias(np.append(SCORES, 0.99), labels, {"a": np.append(GROUP, True)}, 0.5)
    assert more == identity_bias(SCORES, LABELS, {"a": GROUP}, 0.5)


def test_a_scorer_that_knows_no_identity_has_no_bias() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(4000) < 0.5
    scores, group = truth * 0.2 + rng.random(4000), rng.random(4000) < 0.3
    fair = identity_bias(scores, truth, {"a": group})
    unfair = identity_bias(scores + 0.3 * group, truth, {"a": group})
    assert fair["bias_score"] == pytest.approx(fair["overall_auc"], abs=0.02)
    assert unfair["identities"]["a"]["bpsn_auc"] < fair["identities"]["a"]["bpsn_auc"] - 0.1
    assert unfair["identities"]["a"]["subgroup_auc"] == pytest.approx(fair["identities"]["a"]["subgroup_auc"])


def test_the_longest_term_counts() -> None:
    found = find_identities(["An African American woman", "she is american", "a programmer", "A Gay, black man"])
    assert {term: np.flatnonzero(mask).tolist() for term, mask in found.items()} == {
        "woman": [0], "man": [3], "gay": [3], "african american": [0], "american": [1], "black": [3],
    }  # fmt: skip


def test_madlibs_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("template,toxicity,phrase\nt,toxic,a gay person and so on\nt,nontoxic,a baker\n")
    found = read_madlibs(path)
    assert found.texts == ["a gay person and so on", "a baker"]
    assert found.toxic.tolist() == [True, False] and found.groups["gay"].tolist() == [True, False]
    for content, message in (
        ("phrase\nx\n", "lacks the column toxicity; it has phrase"),
        ("toxicity,phrase\ntoxic,gay\nbad,gay\n", "row 2: toxicity is 'bad', must be toxic or nontoxic"),
        ("toxicity,phrase\ntoxic,a baker\n", "no phrase of .* names an identity"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidData, match=message):
            read_madlibs(path)
    with pytest.raises(InvalidData, match="no test sentences"):
        read_madlibs(tmp_path / "none.csv")
