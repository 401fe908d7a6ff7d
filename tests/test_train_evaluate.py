from __future__ import annotations

import json
from pathlib import Path

import pytest

from train.__main__ import main
from train.artifact import LABELS, Layout


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
