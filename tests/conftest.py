"""Shared parts of the tests: small labelled data, a small trained artifact, and real Triton servers."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REPOSITORY = ROOT / "model_repository"
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub

PLAIN = (
    "the article needs a source for this claim and a better map of the town please add one when you can thanks".split()
)
RUDE = {"toxic": "stupid", "obscene": "damn", "insult": "idiot", "threat": "kill", "identity_hate": "foreigners"}


def write_comments(path: Path, rows: int, seed: int = 1) -> Path:
    """A Jigsaw-format CSV whose labels follow from single words, so that a small model can learn them."""
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text", *LABELS, "row_index", "sampling"])
        for i in range(rows):
            words = rng.choices(PLAIN, k=rng.randint(3, 12))
            labels = dict.fromkeys(LABELS, 0)
            for label, word in RUDE.items():
                if rng.random() < 0.25:
                    words.insert(rng.randint(0, len(words)), word)
                    labels[label] = 1
            labels["severe_toxic"] = int(labels["toxic"] and labels["insult"])
            writer.writerow([f"c{i}", " ".join(words), *labels.values(), i, "natural" if i % 2 else "enriched"])
    return path


@pytest.fixture(scope="session")
def comments_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comments(tmp_path_factory.mktemp("data") / "comments.csv", 700)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        """
encoder:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}
  max_vocab: 300
  max_tokens: 32
data:
  validation: {column: row_index, from: 0, to: 150}
  tuning: {rows: 100, where: {sampling: natural}}
train: {epochs: 9, batch_size: 16, learning_rate: 3.0e-3}
"""
    )
    return path


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, comments_csv: Path, tiny_recipe: Path) -> Path:
    """A small classifier, really trained."""
    from train.config import read_recipe
    from train.fit import Sources, fit

    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    fit(read_recipe(tiny_recipe), Sources(comments_csv), folder)
    return folder


def end_at_once(pid: int) -> None:
    """A server whose end is not what is tested: Triton's own way takes a second for each model."""
    from loadtest.processes import kill

    kill(pid)


@pytest.fixture(scope="session")
def server() -> Iterator[object]:
    """A real Triton on the committed model repository."""
    from serve.server import TritonServer

    with TritonServer(REPOSITORY, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
        end_at_once(running.pid)


MAX_QUEUE_MS = 100
BATCH_MS, BATCH = 50, 4
"""The slow encoder takes so long for a batch of so many comments: it answers 80 a second, without using the CPU."""
SLOW_ENCODER = f"""
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.input, self.labels = config["input"][0]["name"], int(config["output"][0]["dims"][0])

    def execute(self, requests):
        rows = [len(pb_utils.get_input_tensor_by_name(r, self.input).as_numpy()) for r in requests]
        time.sleep({BATCH_MS / 1000})
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("scores", np.full((n, self.labels), 0.5, np.float32))])
            for n in rows
        ]
"""


@pytest.fixture(scope="session")
def slow_repository(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as it is exported, but with one encoder that sleeps instead."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    from export.onnx import main as export

    repository = tmp_path_factory.mktemp("slow") / "r"
    options = ("--max-auc-drop", "1", "--max-flip-rate", "1", "--max-bias-shift", "1", "--comments", "50")
    serving = ("--max-queue-ms", str(MAX_QUEUE_MS), "--max-batch-size", str(BATCH), "--instances", "1")
    call = ["--artifact", str(artifact), "--repository", str(repository), "--quantize", "none", *options, *serving]
    assert export([*call, "--padding-free", "off"]) == 0
    encoder = repository / "toxicity_encoder"
    shutil.rmtree(encoder / "1")
    (encoder / "1").mkdir()
    (encoder / "1/model.py").write_text(SLOW_ENCODER)
    report = repository / "toxicity/1/export.json"  # of what it is not any more
    report.write_text(json.dumps({**json.loads(report.read_text()), "files": {}}))
    config = text_format.Parse((encoder / "config.pbtxt").read_text(), pb.ModelConfig())
    config.backend = "python"
    config.ClearField("default_model_filename")
    (encoder / "config.pbtxt").write_text(text_format.MessageToString(config))
    return repository


@pytest.fixture(scope="session")
def slow_server(slow_repository: Path) -> Iterator[object]:
    from serve.server import TritonServer

    with TritonServer(slow_repository, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
        end_at_once(running.pid)
