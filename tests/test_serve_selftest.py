"""A version that does not score as it did at its export does not become ready, whatever changed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.onnx import main as export
from serve import server as serving
from serve.server import ServeError, TritonServer
from train.__main__ import main as train

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def exported(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selftest") / "r"
    call = ["--artifact", str(artifact), "--repository", str(folder), "--comments", "100", "--instances", "1"]
    assert export([*call, "--quantize", "none"]) == 0
    return folder


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "r")
    return tmp_path / "r"


def start(repository: Path, verify: bool = False) -> None:
    """:param verify: else the files' hashes would tell first."""
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, verify=verify):
        pass


def damage_a_weight(repository: Path) -> None:
    file = repository / "toxicity_encoder/1/model.onnx"
    model = onnx.load(file)
    weight = next(w for w in model.graph.initializer if w.name.endswith("head.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= -1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, file)


def test_a_whole_version_starts(repository: Path) -> None:
    start(repository, verify=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toxicity_encoder/1/model.onnx", "model.onnx is not as it was exported"),
        ("toxicity_tokenizer/1/texts.py", "texts.py is not as it was exported"),
        ("toxicity_tokenizer/1/numpy.py", "numpy.py was not there at export"),
        ("toxicity_tokenizer/1/tokenizer.json", "tokenizer.json is missing"),
    ],
)
def test_changed_files_are_not_loaded(repository: Path, name: str, message: str) -> None:
    file = repository / name
    if "missing" in message:
        file.unlink()
    else:
        file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
    with pytest.raises(ServeError, match=f"version 1 of toxicity is damaged, it is not loaded: .*{message}"):
        start(repository, verify=True)


def test_damage_of_a_version_that_is_not_served_stops_nobody(repository: Path) -> None:
    for part in ("toxicity", "toxicity_tokenizer", "toxicity_encoder"):
        shutil.copytree(repository / part / "1", repository / part / "2")
    report = repository / "toxicity/2/export.json"
    content = json.loads(report.read_text())
    report.write_text(
        json.dumps({**content, "files": {n.replace("/1/", "/2/"): h for n, h in content["files"].items()}})
    )
    (repository / "toxicity_encoder/2/model.onnx").write_bytes(b"")
    serving.check_files(repository)
    for part in ("toxicity_tokenizer", "toxicity_encoder"):  # as they are while a version takes over
        config = repository / part / "config.pbtxt"
        config.write_text(config.read_text().replace("versions: 1", "versions: 1\n    versions: 2"))
    with pytest.raises(ServeError, match="version 2 of toxicity is damaged"):
        serving.check_files(repository)


def test_the_backend_loads_no_changed_graph(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a server that runs is told to load it."""
    damage_a_weight(repository)
    monkeypatch.setattr(serving, "check_files", lambda repository: None)
    with pytest.raises(ServeError, match=r"model\.onnx is damaged or was changed, its hash is not that of its export"):
        start(repository, verify=True)


def test_a_damaged_weight_is_found_by_the_backend(repository: Path) -> None:
    damage_a_weight(repository)
    with pytest.raises(ServeError, match=r"self-test failed: the scores of the golden .* differ by up to \d\.\d+"):
        start(repository)


def test_a_damaged_weight_is_found_under_a_backend_that_does_not_look(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NVIDIA's compiled one, which knows nothing of golden comments."""
    blind = tmp_path / "backends"
    shutil.copytree(serving.BACKENDS, blind)
    source = blind / "onnxruntime/model.py"
    source.write_text(source.read_text().replace("golden.is_file()", "False"))
    monkeypatch.setattr(serving, "BACKENDS", blind)
    start(repository)
    damage_a_weight(repository)
    with pytest.raises(ServeError, match="version 1 of toxicity failed its self-test: a score of the golden comment"):
        start(repository)


def test_the_tokenizer_of_another_model_is_found(repository: Path) -> None:
    file = repository / "toxicity_tokenizer/1/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = "t", "s"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ServeError, match=r"self-test failed: the golden comment '.*' has other token ids"):
        start(repository)


def test_a_linear_model_checks_itself_too(comments_csv: Path, tmp_path: Path) -> None:
    fit = ["fit", "--config", "baseline-logreg", "--data", str(comments_csv), "--out", str(tmp_path / "a")]
    small = ["data.validation.from=0", "data.validation.to=150", "data.tuning.rows=80"]
    assert train([*fit, *(part for value in small for part in ("--set", value))]) == 0
    call = ["--artifact", str(tmp_path / "a"), "--repository", str(tmp_path / "r"), "--name", "words"]
    assert export([*call, "--quantize", "none", "--instances", "1"]) == 0
    start(tmp_path / "r")
    file = tmp_path / "r/words_encoder/1/linear.npz"
    with np.load(file) as arrays:
        content = dict(arrays)
    content["intercepts"][0] += 1.0
    np.savez(file, **content)
    with pytest.raises(ServeError, match="self-test failed: the scores of the golden comments differ"):
        start(tmp_path / "r")
