from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.__main__ import main
from train.artifact import LABELS, ClassifierConfig, InvalidArtifact, Labels, Layout, write_json
from train.evaluate import by_length, compare, curves, evaluate_scorer, markdown, measure_obfuscation, worst_errors
from train.metrics import evaluate
from train.model import copy_normalizer


def served(artifact: Path, path: Path, flip: bool = False, drop: int = 0) -> Path:
    """What a client would print for the artifact's validation comments."""
    rows = Layout(artifact).read_validation()
    with path.open("w", encoding="utf-8") as file:
        for row in rows[: len(rows) - drop]:
            scores = {label: 1 - s if flip else s for label, s in zip(LABELS, row["scores"], strict=True)}
            line = {"text": row["text"], "scores": scores, "model": "toxicity", "model_version": "7"}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def test_eval_repeats_the_metrics_of_training(artifact: Path, tmp_path: Path) -> None:
    assert main(["eval", "--artifact", str(artifact), "--out", str(tmp_path / "deep/metrics.json")]) == 0
    written = json.loads((tmp_path / "deep/metrics.json").read_text())["validation"]
    trained = Layout(artifact).read_training_info()["metrics"]["validation"]
    assert written["mean_roc_auc"] == pytest.approx(trained["mean_roc_auc"], abs=1e-6)


def test_eval_of_served_scores_is_of_those_scores(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = served(artifact, tmp_path / "s.jsonl", flip=True)
    arguments = ["eval", "--artifact", str(artifact), "--scores", str(scores), "--out", str(tmp_path / "m.json")]
    assert main([*arguments, "--markdown"]) == 0
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["model"] == {"name": "toxicity", "version": "7", "scored_by": "a running server"}
    trained = Layout(artifact).read_training_info()["metrics"]["validation"]
    assert result["validation"]["mean_roc_auc"] == pytest.approx(1 - trained["mean_roc_auc"], abs=1e-6)
    assert f"| **mean** | | **{result['validation']['mean_roc_auc']:.4f}** |" in capsys.readouterr().out


def test_scores_of_other_comments_are_refused(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = served(artifact, tmp_path / "s.jsonl", drop=1)
    assert main(["eval", "--artifact", str(artifact), "--scores", str(scores)]) == 2
    assert "holds 149 texts, the artifact's validation set 150" in capsys.readouterr().err
    scores.write_text('{"text": "a"}\n')
    assert main(["eval", "--artifact", str(artifact), "--scores", str(scores)]) == 2
    assert "must hold JSON lines with text and scores" in capsys.readouterr().err
    assert main(["eval", "--artifact", str(artifact), "--scores", str(tmp_path / "none")]) == 2
    assert "no scores at" in capsys.readouterr().err


NAMES = ("toxic", "identity_hate")
RUDE = {"toxic": ("stupid", "vile"), "identity_hate": ("vile",)}


def by_words(texts: Sequence[str]) -> np.ndarray:
    """A model that counts rude words, and takes "gay" for a bit of one."""
    rows = [[0.9 * any(w in t for w in RUDE[n]) + 0.05 * ("gay" in t) for n in NAMES] for t in texts]
    return np.array(rows) + 0.01


def written(folder: Path, texts: Sequence[str], normalize: bool = False, **info: Any) -> Path:
    """An artifact folder without a model: all that evaluation reads."""
    folder.mkdir()
    layout = Layout(folder)
    write_json(layout.config, ClassifierConfig(kind="linear", normalize=normalize))
    write_json(layout.labels, Labels(NAMES, dict.fromkeys(NAMES, 0.5)))
    layout.linear.write_bytes(b"x" * 1000)
    layout.normalizer.write_bytes(b"")
    truth = [[int("stupid" in t or "vile" in t), int("vile" in t)] for t in texts]
    scores = by_words(texts)
    rows = [{"text": t, "labels": y, "scores": s.tolist()} for t, y, s in zip(texts, truth, scores, strict=True)]
    layout.validation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = evaluate(scores, np.array(truth), NAMES, dict.fromkeys(NAMES, 0.5))
    write_json(layout.training_info, {"metrics": {"validation": metrics}, "data": {"sha256": "f00"}, "seed": 1, **info})
    return folder


TEXTS = [f"{word} comment number {i}" for i in range(30) for word in ("a stupid", "one vile", "some kind", "another")]


def test_everything_about_a_model_is_ready_for_json(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", TEXTS)
    cases = tmp_path / "cases_en.csv"
    cases.write_text(
        "functionality,test_case,label_gold\nslur,such vile people,hateful\nquote,they said vile,non-hateful\n"
    )
    madlibs = tmp_path / "madlibs.csv"
    madlibs.write_text(
        "phrase,toxicity\na stupid gay man,toxic\na kind gay man,nontoxic\na stupid baker,toxic\na baker,nontoxic\n"
    )
    result = evaluate_scorer(
        by_words, folder, hatecheck=[cases], madlibs=madlibs, obfuscation=True, obfuscation_rows=60, examples=True
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["validation"]["mean_roc_auc"] == 1.0
    assert result["validation"]["labels"]["toxic"]["confusion"] == {"tp": 60, "fp": 0, "fn": 0, "tn": 60}
    assert result["hatecheck"]["cases_en"]["functionality"]["quote"]["accuracy"] == 0.0
    assert result["hatecheck"]["cases_en"]["labels"] == ["identity_hate"]
    assert result["bias"]["labels"] == ["toxic"]
    assert result["bias"]["identities"]["gay"]["bpsn_auc"] == 1.0
    found = result["obfuscation"]
    assert found["comments"] == 60
    assert found["mean_roc_auc"]["clean"] == {"off": 1.0, "on": 1.0, "drop_off": 0.0, "drop_on": 0.0}
    assert found["mean_roc_auc"]["zero_width"]["drop_off"] > 0.05 > found["mean_roc_auc"]["zero_width"]["drop_on"]
    assert result["examples"]["toxic"] == {"false_positives": [], "false_negatives": []}
    assert (result["model"]["parameters"], result["model"]["kind"]) == (None, "linear")


def test_texts_stay_out_unless_asked_for(tmp_path: Path) -> None:
    result = evaluate_scorer(by_words, written(tmp_path / "m", TEXTS))
    assert "comment number" not in json.dumps(result)
    assert not {"examples", "hatecheck", "bias", "obfuscation"} & set(result)


def test_recorded_scores_do_where_no_other_texts_are_scored(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", TEXTS)
    assert evaluate_scorer(None, folder)["validation"] == evaluate_scorer(by_words, folder)["validation"]
    with pytest.raises(ValueError, match="need a model"):
        evaluate_scorer(None, folder, obfuscation=True)


def test_a_model_that_normalizes_has_no_score_without_unless_given(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", TEXTS[:40], normalize=True)
    copy_normalizer(folder)
    found = evaluate_scorer(by_words, folder, obfuscation=True)["obfuscation"]["mean_roc_auc"]
    assert found["leet"]["off"] is None and found["leet"]["drop_off"] is None and found["leet"]["on"] is not None
    both = evaluate_scorer(by_words, folder, obfuscation=True, predict_raw=by_words)
    assert both["obfuscation"]["mean_roc_auc"]["leet"]["off"] == found["leet"]["on"]


def test_obfuscated_texts_that_are_alike_are_scored_once() -> None:
    asked: list[str] = []

    def predict(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return by_words(texts)

    texts = [*TEXTS[:40], TEXTS[0]]
    truth = by_words(texts) > 0.5
    found = measure_obfuscation(predict, texts, truth)["mean_roc_auc"]
    assert len(asked) == len(set(asked)) < 5 * len(texts)
    assert found["zero_width"]["drop_off"] > 0.05 > found["zero_width"]["drop_on"]


def test_comments_by_length_are_counted_once() -> None:
    texts = ["x" * n for n in (0, 50, 51, 150, 400, 401, 1001)]
    scores = np.linspace(0, 1, 14).reshape(7, 2)
    found = by_length(texts, scores, (scores > 0.5).astype(float), Labels(NAMES, dict.fromkeys(NAMES, 0.5)))
    assert [(r["from"], r["to"], r["comments"]) for r in found] == [
        (0, 50, 2), (51, 150, 2), (151, 400, 1), (401, 1000, 1), (1001, None, 1),
    ]  # fmt: skip
    assert all(r["accuracy"] == 1.0 for r in found)


def test_curves_worked_out_by_hand() -> None:
    found = curves(np.array([0.9, 0.4, 0.6, 0.1, 0.5]), np.array([1.0, 1.0, 0.0, 0.0, np.nan]))
    assert list(zip(found["roc"]["fpr"], found["roc"]["recall"], strict=True)) == [
        (0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1),
    ]  # fmt: skip
    assert sum(found["histogram"]["positive"]) == sum(found["histogram"]["negative"]) == 2
    at = found["thresholds"]["threshold"].index(0.5)
    assert [found["thresholds"][key][at] for key in ("precision", "recall", "f1")] == [0.5, 0.5, 0.5]
    long = curves(np.random.default_rng(1).random(5000), (np.arange(5000) % 7 == 0).astype(float))
    assert 100 < len(long["roc"]["fpr"]) < 210 and long["roc"]["fpr"][-1] == 1.0
    assert curves(np.array([0.1, 0.2]), np.zeros(2))["roc"] is None


def test_the_worst_errors_come_first_and_are_cut() -> None:
    texts = ["right", "bad " * 100, "worse", "missed a bit", "missed"]
    scores = np.array([[0.9], [0.6], [0.8], [0.4], [0.1]])
    found = worst_errors(texts, scores, np.array([[1], [0], [0], [1], [1]]), Labels(("a",), {"a": 0.5}))["a"]
    assert [e["index"] for e in found["false_positives"]] == [2, 1]
    assert [e["text"] for e in found["false_negatives"]] == ["missed", "missed a bit"]
    assert len(found["false_positives"][1]["text"]) == 160


def test_compare_puts_artifacts_side_by_side_and_says_when_it_is_unfair(tmp_path: Path) -> None:
    cost = {"parameters": 1_234_567, "seconds": 61.5, "throughput": {"comments_per_s": 23.4}}
    a, b = written(tmp_path / "a", TEXTS, **cost), written(tmp_path / "b", TEXTS)
    same = compare([a, b])
    assert same.warnings == [] and [row["name"] for row in same.rows] == ["a", "b"]
    assert same.rows[0]["size_bytes"] > 1000 and same.rows[0]["comments_per_s"] == 23.4
    assert "1,234,567" in same.text() and "23.4" in same.text()
    assert len({len(line.split("|")) for line in same.markdown().splitlines()}) == 1
    other = compare([a, b, written(tmp_path / "c", TEXTS[:50])])
    assert other.warnings == ["the validation comments differ, so compare only within a group: a, b; c"]
    assert "note: the validation comments differ" in other.text() and "The validation comments" in other.markdown()
    with pytest.raises(InvalidArtifact, match="at least one"):
        compare([])


def test_a_label_without_positives_has_no_areas_in_the_table() -> None:
    metrics = evaluate(np.array([[0.1], [0.2]]), np.zeros((2, 1)), ["a"], {"a": 0.5})
    assert "| a | 0 | - | - | 0.0000 | 0.5000 |" in markdown({"validation": metrics})
