from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import write_comments
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export import results
from export.cascade import main
from export.onnx import main as export_main
from train import fit as train_fit
from train.__main__ import main as train_main
from train.artifact import Layout
from train.data import text_key

NGRAMS = ["ngrams.bits=12", "ngrams.min_count=2", "ngrams.iterations=30", "data.validation={fraction: 0.1}"]
NGRAMS += ["data.tuning={fraction: 0.5}"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> tuple[Path, Path, Path]:
    """An encoder, n-grams that it has taught, and a repository that serves it."""
    folder = tmp_path_factory.mktemp("cascade")
    data, encoder, stage = write_comments(folder / "data.csv", 3200), folder / "tiny", folder / "stage"
    fit = ["fit", "--data", str(data)]
    few = ["--set", "data.tuning.rows=600", "--set", "train.epochs=3", "--set", "data.normalize=true"]
    assert train_main([*fit, "--config", str(tiny_recipe), "--out", str(encoder), *few]) == 0
    values = [argument for value in NGRAMS for argument in ("--set", value)]
    taught = ["--config", "ngrams", "--teacher", str(encoder), "--out", str(stage), *values]
    assert train_main([*fit, *taught]) == 0
    repository = folder / "repository"
    arguments = ["--quantize", "none", "--artifact", str(encoder), "--repository", str(repository), "--name", "m"]
    assert export_main([*arguments, "--comments", "100"]) == 0
    return encoder, stage, repository


def cascade(made: tuple[Path, Path, Path], *more: str, stage: Path | None = None) -> int:
    encoder, own, repository = made
    arguments = ["--encoder", str(encoder), "--stage", str(stage or own), "--repository", str(repository)]
    arguments += ["--count", "comments"]
    return main([*arguments, "--name", "m", "--keep", str(encoder.parent / "kept"), *more])


def stages_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The served code, imported as Triton's Python backend does."""
    monkeypatch.syspath_prepend(str(folder))
    for name in ("stages", "hashing", "fast_tokenizer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("stages", folder / "stages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stages", module)
    spec.loader.exec_module(module)
    return module


def test_ngrams_learn_what_the_teacher_says(made: tuple[Path, Path, Path]) -> None:
    encoder, stage, _ = made
    info = Layout(stage).read_training_info()
    assert info["teacher"] == "tiny" and info["metrics"]["validation"]["mean_roc_auc"] > 0.95
    assert Layout(stage).read_config().kind == "ngrams"
    rows = {row["text"]: row["scores"] for row in Layout(encoder).read_validation()}
    both = [(row["scores"], rows[row["text"]]) for row in Layout(stage).read_validation() if row["text"] in rows]
    assert len(both) > 10
    own, teachers = np.array(both).transpose(1, 0, 2)
    assert np.corrcoef(own[:, 0], teachers[:, 0])[0, 1] > 0.9
    # the teacher's own tuning comments stay unseen, and nothing of the run is left
    assert info["data"]["train"] > 1000 and not stage.with_name("stage.run").exists()


def test_a_cascade_is_published_whole_and_scores_as_it_was_judged(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stage, repository = made
    report = tmp_path / "curve.json"
    assert cascade(made, "--changed", "0.03", "--max-auc-drop", "0.05", "--report", str(report)) == 0
    home = repository / "m_cascade"
    numbers = sorted(int(f.name) for f in home.iterdir() if f.is_dir())
    folder = home / str(numbers[-1])
    config = text_format.Parse((home / "config.pbtxt").read_text(), pb.ModelConfig())
    assert list(config.version_policy.specific.versions) == [numbers[-1]]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["encoder"] == {"model": "m", "version": 1}
    files = {f.name for f in folder.iterdir()}
    assert {"model.py", "stages.py", "hashing.py", "texts.py", "normalizer.py", "stage.npz", "settings.json"} <= files

    found = json.loads(report.read_text())
    step = found["curve"][found["chosen"]]
    assert settings["stages"][0]["exits"] == step["exits"][0] and len(step["exits"][0]) == 8
    assert step["tuning"]["upper_limit"]["comments"] <= 0.03 and step["validation"]["changed_share"] <= 0.03
    assert 0.2 < step["validation"]["answered_by"][0] < 1
    assert [row["sha256"] for row in found["stages"]] == [
        json.loads((folder / "cascade.json").read_text())["files"]["stage.npz"]
    ]

    stages = stages_of(folder, monkeypatch)
    (loaded,) = stages.load(folder, settings)
    rows = Layout(stage).read_validation()
    scores = loaded.scores([row["text"] for row in rows])
    assert scores.dtype == np.float32
    own = 1 / (1 + np.exp(-loaded.logits([row["text"] for row in rows])))
    np.testing.assert_allclose(own, [row["scores"] for row in rows], atol=2e-6)
    assert (np.diff(scores[np.argsort(own[:, 0]), 0]) >= 0).all()  # on another scale, in the same order
    texts = [row["text"] for row in rows]
    sure = stages.sure(loaded, texts, scores)
    edges = settings["stages"][0]["lengths"]
    limits = [loaded.exits[sum(len(text) >= edge for edge in edges)] for text in texts]
    expected = [
        all(s <= low or s >= high for s, (low, high) in zip(r, limit, strict=True))
        for r, limit in zip(scores, limits, strict=True)
    ]
    assert sure.tolist() == expected and 0 < sure.sum() < len(sure)
    settings["stages"][0]["exits"].pop()
    with pytest.raises(ValueError, match="exits for 6 labels and 7 classes of 8, its file stage.npz has weights of 6"):
        stages.load(folder, settings)

    shutil.copy(report, tmp_path / "shown.json")
    page = results.render(tmp_path)
    assert (
        "A cascade in front of m (version 1, artifact tiny)" in page
        and "| **3.00%** |" in page
        and "share of comments with any" in page
    )


def test_a_small_encoder_is_the_second_stage(
    made: tuple[Path, Path, Path], tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _, repository = made
    data, student, report = encoder.parent / "data.csv", tmp_path / "student", tmp_path / "curve.json"
    fit = ["fit", "--data", str(data), "--config", str(tiny_recipe), "--teacher", str(encoder), "--out", str(student)]
    few = ["train.epochs=2", "data.validation={fraction: 0.1}", "data.tuning={fraction: 0.5}"]
    assert train_main([*fit, *(argument for value in few for argument in ("--set", value))]) == 0
    bounds = ["--count", "decisions", "--changed", "0.02", "--max-auc-drop", "0.05", "--report", str(report)]
    assert cascade(made, "--stage", str(student), *bounds) == 0
    home = repository / "m_cascade"
    folder = home / str(max(int(f.name) for f in home.iterdir() if f.is_dir()))
    settings, found = json.loads((folder / "settings.json").read_text()), json.loads(report.read_text())
    first, second = settings["stages"]
    assert (second["kind"], second["file"], second["with"]) == ("onnx", "student.onnx", ["stage"])
    assert {"student.onnx", "student.tokenizer.json", "fast_tokenizer.py"} <= {f.name for f in folder.iterdir()}
    step = found["curve"][found["chosen"]]
    assert [first["exits"], second["exits"]] == step["exits"] and found["bound"]["count"] == "decisions"
    assert step["tuning"]["upper_limit"]["decisions"] <= 0.02 and step["validation"]["changed_decisions"] <= 0.02
    assert step["validation"]["answered_by"][1] > 0

    stages = stages_of(folder, monkeypatch)
    cheap, small = stages.load(folder, settings)
    texts = [row["text"] for row in Layout(student).read_validation()][:60]
    own = 1 / (1 + np.exp(-small.models[0](texts)))
    np.testing.assert_allclose(own, [row["scores"] for row in Layout(student).read_validation()][:60], atol=0.05)
    np.testing.assert_allclose(small.logits(texts), (small.models[0](texts) + cheap.logits(texts)) / 2, atol=1e-6)
    # what the stage before has said of the same texts is not computed again
    remembering = small.models[1]
    said = cheap.logits(texts)
    with monkeypatch.context() as gone:
        gone.setattr(remembering, "model", None)
        np.testing.assert_array_equal(remembering(texts[7:3:-1]), said[7:3:-1])
        with pytest.raises(TypeError):
            remembering([texts[0], "never seen"])
    # a text's own scores, whatever stands beside it: INT8 ranges are taken over a batch, so nearly
    alone = np.concatenate([small.scores([text]) for text in texts[:10]])
    np.testing.assert_allclose(small.scores(texts)[:10], alone, atol=0.1)
    assert small.scores([]).shape == (0, 6)
    with pytest.raises(ValueError, match="averaged with 'stage', which is no stage before it"):
        stages.load(folder, {"stages": [second]})
    with pytest.raises(ValueError, match="is of the kind 'tree'"):
        stages.load(folder, {"stages": [{**first, "kind": "tree"}]})
    (tmp_path / "student.onnx").write_bytes(b"broken")
    shutil.copy(folder / "student.tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="student.onnx or .* cannot be read"):
        stages.load(tmp_path, {"stages": [{**second, "with": []}]})


def test_a_convolution_is_a_stage(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _, repository = made
    taught: list[str] = []
    teach = train_fit.teach

    def spy(teacher: Path, texts: list[str], *rest: Any) -> Any:
        taught.extend(texts)
        return teach(teacher, texts, *rest)

    monkeypatch.setattr(train_fit, "teach", spy)
    data, student, report = encoder.parent / "data.csv", tmp_path / "conv", tmp_path / "curve.json"
    sets = ["train.epochs=4", "train.batch_size=32", "data.validation={fraction: 0.1}", "data.tuning={fraction: 0.5}"]
    sets += ["encoder.config.embedding_size=16", "encoder.config.hidden_size=32"]
    fit = ["fit", "--data", str(data), "--config", "convolution", "--out", str(student)]
    fit += [argument for value in sets for argument in ("--set", value)]
    assert train_main(fit) == 2  # whose embeddings?
    assert train_main([*fit, "--teacher", str(encoder)]) == 0
    own = {text_key(row["text"]) for row in Layout(encoder).read_tuning()}
    assert len(taught) > 500 and not own & {text_key(text) for text in taught}  # they judge it later

    bounds = ["--count", "decisions", "--changed", "0.02", "--max-auc-drop", "0.05", "--report", str(report)]
    assert cascade(made, "--stage", str(student), *bounds) == 0
    home = repository / "m_cascade"
    folder = home / str(max(int(f.name) for f in home.iterdir() if f.is_dir()))
    stage = stages_of(folder, monkeypatch).load(folder, json.loads((folder / "settings.json").read_text()))[1]
    rows = Layout(student).read_validation()[:60]
    scores = 1 / (1 + np.exp(-stage.models[0]([row["text"] for row in rows])))
    np.testing.assert_allclose(scores, [row["scores"] for row in rows], atol=0.05)
    step = json.loads(report.read_text())["curve"][json.loads(report.read_text())["chosen"]]
    assert sum(step["validation"]["answered_by"][:2]) > 0.2


def test_a_cascade_that_decides_otherwise_is_refused(
    made: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    repository = made[2]
    before = sorted(str(f) for f in repository.rglob("*"))
    report = tmp_path / "refused.json"
    assert cascade(made, "--changed", "0.0001", "--report", str(report)) == 1
    assert "even the most careful exits change" in capsys.readouterr().err
    assert json.loads(report.read_text())["chosen"] is None  # the curve tells why
    assert sorted(str(f) for f in repository.rglob("*")) == before


def test_what_does_not_fit_is_named(
    made: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    encoder, stage, repository = made
    plain = tmp_path / "plain"
    shutil.copytree(stage, plain)
    Layout(plain).calibration.write_text("{}")
    assert cascade(made, stage=plain) == 2
    assert "is a ngrams model with isotonic calibration; a stage is made of" in capsys.readouterr().err
    Layout(plain).calibration.unlink()
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "normalize": False}))
    assert cascade(made, stage=plain) == 2
    assert "data.normalize=false, m is served with true" in capsys.readouterr().err
    (plain / "config.json").write_text(json.dumps(config))
    (plain / "model.npz").write_bytes(b"broken")
    assert cascade(made, stage=plain) == 2
    assert "holds no hashed n-grams" in capsys.readouterr().err
    assert cascade(made, "--changed", "2") == 2
    assert "--changed is 2.0, must lie between 0 and 1" in capsys.readouterr().err
    assert main(["--encoder", str(encoder), "--stage", str(stage), "--repository", str(repository), "--name", "x"]) == 2
    assert "has no model 'x'" in capsys.readouterr().err
