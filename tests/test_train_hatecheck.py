from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from train.data import InvalidData
from train.hatecheck import Cases, evaluate_hatecheck, flag, hate_labels, read_hatecheck
from train.metrics import SINGLE_LABEL

NAMES = ["toxic", "identity_hate"]
THRESHOLDS = {"toxic": 0.5, "identity_hate": 0.3}
CASES = Cases(
    ["a", "b", "c", "d", "e"],
    np.array([True, True, True, False, False]),
    ["threat", "threat", "slur", "quote", "quote"],
    ["x", "y", "x", "x", ""],
)
SCORES = {"a": [0.9, 0.4], "b": [0.6, 0.2], "c": [0.1, 0.31], "d": [0.7, 0.1], "e": [0.1, 0.3]}


def predict(texts: Sequence[str]) -> np.ndarray:
    return np.array([SCORES[t] for t in texts])


def test_accuracy_worked_out_by_hand() -> None:
    result = evaluate_hatecheck(predict, CASES, NAMES, THRESHOLDS)  # flags a, c, e
    assert result["labels"] == ["identity_hate"] and result["thresholds"] == {"identity_hate": 0.3}
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert (result["accuracy_hateful"], result["accuracy_non_hateful"]) == (pytest.approx(2 / 3), 0.5)
    assert result["functionality"] == {
        "threat": {"cases": 2, "hateful": 2, "accuracy": 0.5},
        "slur": {"cases": 1, "hateful": 1, "accuracy": 1.0},
        "quote": {"cases": 2, "hateful": 0, "accuracy": 0.5},
    }
    assert result["target"]["x"] == {"cases": 3, "hateful": 2, "accuracy": 1.0} and set(result["target"]) == {"x", "y"}
    decided = [1, 0, 1, 0, 1]
    assert result["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(CASES.hateful, decided, average="macro"))
    assert result["roc_auc"] == pytest.approx(5 / 6)  # only 0.2 against 0.3 is out of order


def test_any_of_several_labels_counts() -> None:
    result = evaluate_hatecheck(predict, CASES, NAMES, THRESHOLDS, labels=["toxic", "identity_hate"])
    assert (result["accuracy_hateful"], result["accuracy_non_hateful"]) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"no label hate: the model has toxic, identity_hate"):
        evaluate_hatecheck(predict, CASES, NAMES, THRESHOLDS, labels=["hate"])


def test_a_single_label_model_decides_by_its_highest_score() -> None:
    scores = np.array([[0.4, 0.35, 0.25], [0.2, 0.3, 0.5]])
    names = ["hate", "offensive", "neither"]
    flagged, score = flag(scores, names, dict.fromkeys(names, 0.5), ["hate", "offensive"], SINGLE_LABEL)
    assert flagged.tolist() == [True, False]
    np.testing.assert_allclose(score, [0.75, 0.5])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("regular", "hate"), ["hate"]),
        (("Regular", "Hate"), ["Hate"]),
        (("toxic", "insult", "identity_hate"), ["identity_hate"]),
        (("toxic", "insult"), ["toxic", "insult"]),
        (("offensive", "neither"), ["offensive"]),
    ],
)
def test_which_labels_mean_hate(names: tuple[str, ...], chosen: list[str]) -> None:
    assert hate_labels(names) == chosen


def test_files_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("functionality,test_case,label_gold\nf1,NA,hateful\nf2,b,non-hateful\n")
    cases = read_hatecheck(path)
    assert cases.texts == ["NA", "b"] and cases.hateful.tolist() == [True, False]
    assert cases.functionality == ["f1", "f2"] and cases.target == ["", ""]
    path.write_text("functionality,test_case,label_gold\nf1,a,bad\n")
    with pytest.raises(InvalidData, match="row 1: label_gold is 'bad'"):
        read_hatecheck(path)
    path.write_text("test_case\na\n")
    with pytest.raises(InvalidData, match="lacks the column label_gold, functionality"):
        read_hatecheck(path)
    with pytest.raises(InvalidData, match="no test sentences"):
        read_hatecheck(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="none of the labels regular"):
        hate_labels(["regular"])
