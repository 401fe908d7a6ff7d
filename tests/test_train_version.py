from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.artifact import PROBLEM_TYPES, ClassifierConfig, InvalidArtifact, Labels, Layout, write_json
from train.config import LinearConfig
from train.linear import fit_linear, load, save
from train.version import Facts, InvalidVersion, check_explicit, facts, next_version, parse, read, write

ENCODER = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "hidden_dropout_prob": 0.1}
FACTS = Facts({"kind": "transformer", "encoder": ENCODER}, ("toxic", "threat"), "a" * 64)


def transformer(folder: Path) -> Path:
    """The files of a transformer's artifact that its version depends on."""
    layout, rng = Layout(folder), np.random.default_rng(1)
    layout.tokenizer.mkdir(parents=True)
    layout.tokenizer_json.write_text("{}")
    write_json(layout.config, ClassifierConfig(ENCODER))
    write_json(layout.labels, Labels())
    tensors = {"encoder.w": (8, 8), "head.weight": (6, 8), "head.bias": (6,)}
    save_file({name: rng.normal(size=s).astype(np.float32) for name, s in tensors.items()}, layout.weights)
    return folder


def linear(folder: Path, words: str) -> Path:
    layout, config = Layout(folder), LinearConfig(max_features=50, solver="liblinear")
    folder.mkdir()
    write_json(layout.config, ClassifierConfig(kind="linear"))
    write_json(layout.labels, Labels(("toxic",), {"toxic": 0.5}))
    write_json(layout.training_info, {"recipe": {"linear": asdict(config)}})
    labels = np.array([[1.0], [0.0]], np.float32)
    save(fit_linear(config, [f"you {words}", "thanks a lot"], labels, ("toxic",), PROBLEM_TYPES[0], 1), folder)
    return folder


def changed(layout: Layout, name: str, by: float) -> None:
    tensors = load_file(layout.weights)
    tensors[name] = (tensors[name] * np.float32(by)).astype(np.float32)
    save_file(tensors, layout.weights)


def test_the_first_version_and_what_it_says() -> None:
    first = next_version(None, FACTS)
    assert (first.version, first.previous, first.change) == ("1.0.0", None, "first version")
    created = datetime.fromisoformat(first.created)
    assert created.utcoffset() is not None and abs((datetime.now(timezone.utc) - created).total_seconds()) < 60


@pytest.mark.parametrize(
    ("new", "version", "change"),
    [
        (FACTS, "2.3.5", "PATCH: same weights"),
        (replace(FACTS, weights_sha256="b"), "2.4.0", "MINOR: new weights"),
        (replace(FACTS, labels=("threat", "toxic"), weights_sha256="b"), "3.0.0", "MAJOR: labels toxic, threat became"),
        (
            replace(FACTS, architecture=FACTS.architecture | {"encoder": ENCODER | {"hidden_size": 16}}),
            "3.0.0",
            "MAJOR: encoder.hidden_size 8 became 16",
        ),
        (
            replace(FACTS, architecture=FACTS.architecture | {"tokenizer_sha256": "c"}),
            "3.0.0",
            "MAJOR: another tokenizer",
        ),
        (
            replace(FACTS, architecture={"kind": "linear"}),
            "3.0.0",
            "kind transformer became linear",
        ),
    ],
)
def test_the_number_follows_from_what_changed(new: Facts, version: str, change: str) -> None:
    previous = replace(next_version(None, FACTS), version="2.3.4")
    result = next_version(previous, new)
    assert result.version == version and change in result.change and result.previous == "2.3.4"
    assert next_version(previous, new, change="better").change == "better"


def test_a_version_can_be_given_but_must_rise() -> None:
    previous = replace(next_version(None, FACTS), version="1.10.0")
    assert next_version(previous, FACTS, version="2.0.0").version == "2.0.0"
    assert next_version(previous, FACTS, version="1.10.1").version == "1.10.1"
    assert next_version(None, FACTS, version="0.1.0").version == "0.1.0"
    for version in ("1.10.0", "1.9.9", "0.99.0"):
        with pytest.raises(InvalidVersion, match=rf"is {version}, must be higher than the previous one, 1\.10\.0"):
            next_version(previous, FACTS, version=version)
    for version in ("2", "2.0", "v2.0.0", "2.0.0-rc1", "02.0.0", "", "2.0.0\n"):
        for before in (previous, None):
            with pytest.raises(InvalidVersion, match=r"must be MAJOR\.MINOR\.PATCH, for example 1\.0\.0"):
                next_version(before, FACTS, version=version)
            with pytest.raises(InvalidVersion):
                check_explicit(version, before)
    check_explicit(None, previous)
    assert parse("10.2.3") == (10, 2, 3)


def test_versions_are_written_and_read(tmp_path: Path) -> None:
    assert read(tmp_path) is None and read(tmp_path / "none") is None
    folder = transformer(tmp_path / "a")
    version = write(folder, None, "0.3.0", change="a trial")
    assert read(folder) == version and (version.version, version.change) == ("0.3.0", "a trial")
    assert [p.name for p in folder.iterdir() if p.name[0] in ".M"] == ["MODEL_VERSION.json"]
    for text in ("{", "[]", '{"version": "1.0.0"}', json.dumps(asdict(version) | {"version": "one"})):
        (tmp_path / "MODEL_VERSION.json").write_text(text)
        with pytest.raises(InvalidArtifact, match="holds no model version .*: remove it to begin at"):
            read(tmp_path)


def test_artifacts_of_transformers_are_compared(tmp_path: Path) -> None:
    layout = Layout(transformer(tmp_path / "a"))
    first = write(layout.folder)
    assert first.version == "1.0.0" and read(layout.folder) == first

    write_json(layout.labels, Labels(thresholds=dict.fromkeys(Labels().labels, 0.3)))
    changed(layout, "head.weight", 1.37)  # a calibration that was folded into the head
    changed(layout, "head.bias", 0.2)
    config = ClassifierConfig(ENCODER | {"hidden_dropout_prob": 0.0, "transformers_version": "9"}, dropout=0.3)
    write_json(layout.config, config)
    second = write(layout.folder, first)
    assert second.version == "1.0.1"

    changed(layout, "encoder.w", 1.001)
    third = write(layout.folder, second, change="more data")
    assert (third.version, third.change, third.previous) == ("1.1.0", "more data", "1.0.1")
    tensors = load_file(layout.weights)
    save_file(tensors | {"head.weight": -tensors["head.weight"]}, layout.weights)
    assert write(layout.folder, third).version == "1.2.0"

    for config in (
        ClassifierConfig(ENCODER | {"hidden_size": 16}),
        ClassifierConfig(ENCODER, max_tokens=256),
        ClassifierConfig(ENCODER, pooling="cls"),
        ClassifierConfig(ENCODER, problem_type=PROBLEM_TYPES[1]),
    ):
        write_json(layout.config, config)
        assert write(layout.folder, third).version == "2.0.0"
    write_json(layout.config, ClassifierConfig(ENCODER))
    layout.tokenizer_json.write_text('{"vocab": []}')
    assert write(layout.folder, third).change == "MAJOR: another tokenizer"


def test_artifacts_of_linear_models_are_compared(tmp_path: Path) -> None:
    folder = linear(tmp_path / "a", "idiot")
    first = write(folder)
    save(load(folder).calibrated(2.0, np.array([0.5])), folder)
    assert write(folder, first).version == "1.0.1"
    again, other = linear(tmp_path / "same", "idiot"), linear(tmp_path / "other", "fool")
    assert facts(again) == facts(folder)
    assert write(other, first).version == "1.1.0"
    info = {"recipe": {"linear": asdict(LinearConfig(char_ngrams=[2, 5]))}}
    write_json(Layout(other).training_info, info)
    assert write(other, first).change == "MAJOR: char_ngrams None became [2, 5]"
    major = write(transformer(tmp_path / "t"), first)
    assert major.version == "2.0.0" and major.change.startswith("MAJOR: labels toxic became toxic, severe_toxic")


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = transformer(tmp_path / "a")
    Layout(folder).weights.unlink()
    with pytest.raises(InvalidArtifact, match=r"model\.safetensors is missing"):
        facts(folder)
    Layout(folder).tokenizer_json.unlink()
    with pytest.raises(InvalidArtifact, match=r"tokenizer\.json is missing"):
        facts(folder)
