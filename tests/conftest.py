"""Shared parts of the tests: small labelled data, a small trained artifact, and real Triton servers."""

from __future__ import annotations

import csv
import os
import random
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


@pytest.fixture(scope="session")
def server() -> Iterator[object]:
    """A real Triton on the committed model repository."""
    from serve.server import TritonServer

    with TritonServer(REPOSITORY, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
