"""The exported linear model scores as scikit-learn does, on any text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.linear_scorer import Features, LinearScorer, without_accents
from export.onnx import main as export
from train.__main__ import main as train
from train.scorer import Scorer, load

SMALL = ["data.validation.from=0", "data.validation.to=150", "data.tuning.rows=80"]


@pytest.fixture(scope="module")
def pair(comments_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, LinearScorer]:
    folder = tmp_path_factory.mktemp("linear")
    fit = ["fit", "--config", "linear", "--data", str(comments_csv), "--out", str(folder / "a")]
    assert train([*fit, *(part for value in SMALL for part in ("--set", value))]) == 0
    assert train(["calibrate", "--artifact", str(folder / "a"), "--method", "isotonic"]) == 0
    assert export(["--quantize", "none", "--artifact", str(folder / "a"), "--repository", str(folder / "r")]) == 0
    return load(folder / "a")[0].without_normalizer(), LinearScorer(folder / "r/toxicity_encoder/1")


WORDS = ["idiot", "IDIOT", "ídíöt", "a", "the map", "damn!", "fore-igners", "ß", "ﬁne", "日本", "\u00a0", "\n"]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_scores_are_scikit_learns(pair: tuple[Scorer, LinearScorer], texts: list[str]) -> None:
    trained, exported = pair
    np.testing.assert_allclose(exported.scores(texts), trained.scores(texts), atol=1e-5)


def test_short_words_count_once_and_unknown_ones_not_at_all() -> None:
    settings = {"analyzer": "char_wb", "ngrams": [2, 5], "sublinear_tf": False, "token_pattern": "x"}
    features = Features(settings, {" a": 0, "a ": 1, " a ": 2}, np.ones(3, np.float32))
    assert list(features.character_grams("a b")) == [" a", "a ", " a ", " b", "b ", " b "]
    columns, values = features.of("a b")
    assert columns.tolist() == [0, 1, 2] and np.linalg.norm(values) == pytest.approx(1)
    assert [len(part) for part in features.of("zz")] == [0, 0]
    assert without_accents("Ångström ﬁ") == "Angstrom fi"


def test_what_a_linear_model_cannot_be_is_refused(
    comments_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "baseline-logreg", "--data", str(comments_csv), "--out", str(tmp_path / "a")]
    assert train([*fit, *(part for value in SMALL for part in ("--set", value))]) == 0
    call = ["--artifact", str(tmp_path / "a"), "--repository", str(tmp_path / "r")]
    for more in (["--quantize", "int8"], ["--quantize", "none", "--target", "cuda"]):
        assert export([*call, *more]) == 2
        assert "the artifact is a linear model" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
