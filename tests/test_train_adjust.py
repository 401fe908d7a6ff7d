"""Changing an artifact without training, and every other command on an artifact."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, write_comments

from export.onnx import main as export
from train import metrics
from train.__main__ import main
from train.adjust import recalibrate, tune
from train.artifact import Layout
from train.config import read_recipe
from train.fit import Sources, fit
from train.scorer import load
from train.version import read as read_version


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory, comments_csv: Path) -> Path:
    overrides = ["data.validation.from=0", "data.validation.to=150", "data.tuning.rows=100"]
    folder = tmp_path_factory.mktemp("linear") / "svm"
    fit(read_recipe("baseline-svm", overrides), Sources(comments_csv), folder)
    return folder


def test_thresholds_reach_the_precision_that_was_asked_for_on_the_tuning_comments(copy: Path) -> None:
    adjusted = tune(copy, ("precision", 0.97))
    thresholds = Layout(copy).read_labels().thresholds
    rows = Layout(copy).read_tuning()
    scores, truth = np.array([r["scores"] for r in rows]), np.array([r["labels"] for r in rows])
    for i, label in enumerate(LABELS):
        flagged = scores[:, i] >= thresholds[label]
        if label not in adjusted.warnings:
            assert truth[flagged, i].mean() >= 0.97
    assert adjusted.version == "1.0.1" == read_version(copy).version  # type: ignore[union-attr]
    info = Layout(copy).read_training_info()
    assert info["metrics"]["validation"] == adjusted.after
    assert adjusted.after["labels"]["toxic"]["threshold"] == thresholds["toxic"]


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_calibration_mends_scores_that_were_bent(copy: Path, method: str) -> None:
    scorer, _, _ = load(copy)
    scorer.fold(0.2, np.zeros(6))  # far too unsure
    scorer.save(copy)
    bent = brier(copy)
    adjusted = recalibrate(copy, method)
    assert brier(copy) < 0.7 * bent
    assert adjusted.version == "1.0.1"
    assert Layout(copy).calibration.is_file() == (method == "isotonic")
    # a second one starts from the model, not from the first
    assert recalibrate(copy, "platt").version == "1.0.2"
    assert not Layout(copy).calibration.is_file()


def brier(folder: Path) -> float:
    scorer, _, _ = load(folder)
    rows = Layout(folder).read_validation()
    scores = scorer.scores([r["text"] for r in rows])
    return float(((scores - np.array([r["labels"] for r in rows])) ** 2).mean())


def test_isotonic_scores_are_the_same_in_numpy_torch_and_the_exported_graph(copy: Path, tmp_path: Path) -> None:
    recalibrate(copy, "isotonic")
    scorer, _, _ = load(copy)
    rows = Layout(copy).read_validation()
    texts = [r["text"] for r in rows]
    scores = scorer.scores(texts)
    np.testing.assert_allclose(scores, [r["scores"] for r in rows], atol=2e-6)
    logits = torch.from_numpy(scorer.logits(texts)).float()
    np.testing.assert_allclose(scorer.network.activate(logits).numpy(), scores, atol=1e-5)  # type: ignore[attr-defined]
    # the export compares the graph with torch and refuses differences
    arguments = ["--quantize", "none", "--artifact", str(copy), "--repository", str(tmp_path / "r")]
    assert export([*arguments, "--comments", "100"]) == 0


def test_a_linear_model_can_be_adjusted_and_exported_too(linear: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(linear, tmp_path / "copy"))
    assert recalibrate(copy, "isotonic").version == "1.0.1"
    assert tune(copy).version == "1.0.2"
    scores = load(copy)[0].scores([r["text"] for r in Layout(copy).read_validation()])
    np.testing.assert_allclose(scores, [r["scores"] for r in Layout(copy).read_validation()], atol=2e-6)
    arguments = ["--quantize", "none", "--artifact", str(copy), "--repository", str(tmp_path / "r")]
    assert export(arguments) == 0
    report = json.loads((tmp_path / "r/toxicity/1/export.json").read_text())
    assert report["model_version"] == "1.0.2"
    assert report["settings"]["thresholds"] == Layout(copy).read_labels().thresholds


def test_commands_refuse_what_they_cannot_do_and_change_nothing(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    (copy / "tuning.jsonl").rename(tmp_path / "kept")
    assert main(["tune", "--artifact", str(copy)]) == 2
    assert "tuning.jsonl is missing: train again" in capsys.readouterr().err
    (tmp_path / "kept").rename(copy / "tuning.jsonl")
    with pytest.raises(SystemExit):
        main(["tune", "--artifact", str(copy), "--objective", "precision=2"])
    assert "precision=P with P above 0 and at most 1" in capsys.readouterr().err
    assert main(["eval", "--artifact", str(copy), "--scores", "x", "--obfuscation"]) == 2
    assert "--scores holds the validation comments alone" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_predict_reads_arguments_and_files(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--artifact", str(artifact), "you stupid idiot", "thanks for the map"]) == 0
    rude, plain = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert rude["text"] == "you stupid idiot" and "insult" in rude["flagged"] and not plain["flagged"]
    assert list(rude["scores"]) == list(LABELS)
    write_comments(tmp_path / "c.csv", 5)
    out = tmp_path / "out.jsonl"
    assert main(["predict", "--artifact", str(artifact), "--input", str(tmp_path / "c.csv"), "--out", str(out)]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert texts == pd.read_csv(tmp_path / "c.csv")["comment_text"].tolist()


def test_eval_writes_json_and_a_page(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = tmp_path / "cases.csv"
    cases.write_text("functionality,test_case,label_gold\na,foreigners out,hateful\nb,the map,non-hateful\n")
    out, page = tmp_path / "e/out.json", tmp_path / "e/out.html"
    arguments = ["eval", "--artifact", str(artifact), "--hatecheck", str(cases), "--obfuscation", "--examples"]
    assert main([*arguments, "--out", str(out), "--html", str(page)]) == 0
    assert "cases: " in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["hatecheck"]["cases"]["cases"] == 2
    assert set(result["obfuscation"]) >= {"clean"} or result["obfuscation"]
    assert "examples" not in result  # texts are for the page alone
    HTMLParser().feed(page.read_text())
    assert "<svg" in page.read_text() or "data:image/png" in page.read_text()


def test_compare_puts_artifacts_side_by_side(
    artifact: Path, linear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared.json"
    assert main(["compare", str(artifact), str(linear), "--out", str(out), "--markdown"]) == 0
    table = capsys.readouterr().out
    assert "tiny" in table and "svm" in table and table.startswith("|")
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2


def test_training_over_an_artifact_is_its_next_version(
    copy: Path, comments_csv: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(tiny_recipe), "--data", str(comments_csv), "--out", str(copy)]
    arguments += ["--set", "train.epochs=0.2"]
    assert main([*arguments, "--model-version", "0.9.0"]) == 2
    assert "the model version is 0.9.0, must be higher than the previous one, 1.0.0" in capsys.readouterr().err
    assert main(arguments) == 0
    assert read_version(copy).version == "1.1.0"  # type: ignore[union-attr]
    assert main([*arguments, "--set", "encoder.max_tokens=16"]) == 0
    assert read_version(copy).version == "2.0.0"  # type: ignore[union-attr]
    assert metrics.MULTI_LABEL == Layout(copy).read_config().problem_type
