from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from train.artifact import ClassifierConfig, Layout
from train.config import DistillationConfig, EncoderConfig, InvalidConfig, TrainConfig, read_recipe
from train.fit import Options, Sources, build, fit
from train.loop import COMPLETE, LikeLengths, Objective, class_weights, last_checkpoint, soft_weights
from train.model import ToxicityClassifier, freeze, load

SMALL = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SINGLE = "single_label_classification"


def objective(problem_type: str = "multi_label_classification", **values: object) -> Objective:
    config = ClassifierConfig({**SMALL, "vocab_size": 50, "intermediate_size": 32}, problem_type=problem_type)
    weights = values.pop("weights", None)
    distillation = values.pop("distillation", None)
    mask_id = values.pop("mask_id", None)
    soft = values.pop("soft_weights", None)
    model = ToxicityClassifier(config, labels=2).eval()
    return Objective(model, TrainConfig(**values), weights, distillation, mask_id=mask_id, soft_weights=soft)  # type: ignore[arg-type]


def inputs(labels: list[list[float]]) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, 1 + 3 * len(labels)).reshape(len(labels), 3)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}


def test_loss_is_the_mean_of_the_labels_cross_entropies_and_leaves_unknown_ones_out() -> None:
    it = objective()
    batch = inputs([[1.0, 0.0], [0.0, float("nan")]])
    logits = it.model.logits(batch["input_ids"], batch["attention_mask"])
    p = torch.sigmoid(logits)
    expected = -(p[0, 0].log() + (1 - p[0, 1]).log() + (1 - p[1, 0]).log()) / 3
    torch.testing.assert_close(it(**batch)["loss"], expected)
    it(**batch)["loss"].backward()
    assert torch.isfinite(it.model.head.weight.grad).all()


def test_balanced_soft_labels_let_rare_ones_be_heard() -> None:
    teacher = np.log(np.array([[0.04, 0.64], [0.04, 0.64]]) / np.array([[0.96, 0.36], [0.96, 0.36]]))
    weights = soft_weights(teacher, 0.5)
    torch.testing.assert_close(weights, torch.tensor([1.6, 0.4]))  # the inverse roots 5 and 1.25, by their mean
    torch.testing.assert_close(soft_weights(teacher, 0.0), torch.ones(2))
    it = objective(distillation=DistillationConfig(weight=1.0), soft_weights=weights)
    batch = inputs([[1.0, 0.0], [0.0, 1.0]])
    p = torch.sigmoid(it.model.logits(batch["input_ids"], batch["attention_mask"]))
    each = -(torch.tensor([0.04, 0.64]) * p.log() + torch.tensor([0.96, 0.36]) * (1 - p).log())
    expected = (each * weights).mean()
    torch.testing.assert_close(it(**batch, teacher_logits=torch.tensor(teacher))["loss"], expected)


def test_positive_weights_count_positives_so_many_times() -> None:
    batch = inputs([[1.0, 0.0], [0.0, 0.0]])
    plain, weighted = objective(), objective(weights=torch.tensor([3.0, 1.0]))
    weighted.load_state_dict(plain.state_dict())
    p = torch.sigmoid(plain.model.logits(batch["input_ids"], batch["attention_mask"]))
    more = -2 * p[0, 0].log() / 4
    torch.testing.assert_close(weighted(**batch)["loss"], plain(**batch)["loss"] + more)


def test_single_label_loss_smooths_and_skips_rows_of_unknown_class() -> None:
    it = objective(SINGLE, label_smoothing=0.2)
    batch = inputs([[1.0, 0.0], [float("nan"), float("nan")]])
    logs = torch.log_softmax(it.model.logits(batch["input_ids"], batch["attention_mask"]), 1)
    torch.testing.assert_close(it(**batch)["loss"], -(0.9 * logs[0, 0] + 0.1 * logs[0, 1]))


def test_token_dropout_hides_other_tokens_at_every_sight_of_a_comment_in_training_alone() -> None:
    it = objective(token_dropout=0.5, mask_id=49)
    batch = inputs([[1.0, 0.0]] * 8)
    batch["attention_mask"][:, 2] = 0
    seen = []
    it.model.encoder.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True)
    it.eval()(**batch)
    assert torch.equal(seen[0], batch["input_ids"])
    it.train()
    it(**batch)
    it(**batch)
    for ids in seen[1:]:
        assert torch.equal(ids[:, [0, 2]], batch["input_ids"][:, [0, 2]])  # neither [CLS] nor padding
        assert 0 < (ids[:, 1] == 49).sum() < 8
    assert not torch.equal(seen[1], seen[2])
    with pytest.raises(InvalidConfig, match=r"token_dropout is 0\.5, but the tokenizer has no mask token"):
        objective(token_dropout=0.5)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    it = objective(distillation=DistillationConfig(weight=1.0, temperature=2.0))
    batch = inputs([[1.0, 0.0], [float("nan"), float("nan")]])
    own = it.model.logits(batch["input_ids"], batch["attention_mask"]).detach()
    bias = it.model.head.bias
    (nothing,) = torch.autograd.grad(it(**batch, teacher_logits=own)["loss"], bias)
    (something,) = torch.autograd.grad(it(**batch, teacher_logits=own + 2.0)["loss"], bias)
    torch.testing.assert_close(nothing, torch.zeros(2))
    assert (something < -0.1).all()  # its logits must rise


def test_unlabelled_comments_have_the_whole_soft_loss() -> None:
    it = objective(distillation=DistillationConfig(weight=0.25))
    batch = inputs([[float("nan"), float("nan")]])
    own = it.model.logits(batch["input_ids"], batch["attention_mask"]).detach()
    p = torch.sigmoid(own)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert it(**batch, teacher_logits=own)["loss"].item() == pytest.approx(float(entropy), rel=1e-5)


def test_class_weights_are_inverse_frequencies_up_to_a_limit() -> None:
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, np.nan]], np.float32)
    assert class_weights(labels, "multi_label_classification", 50).tolist() == pytest.approx([1 / 3, 2.0])
    assert class_weights(labels, "multi_label_classification", 1.5).tolist() == pytest.approx([1 / 3, 1.5])
    classes = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    assert class_weights(classes, SINGLE, 50).tolist() == pytest.approx([4 / 6, 2.0])


def test_an_epoch_shows_each_comment_positives_as_often_as_asked_and_like_lengths_together() -> None:
    rng = np.random.default_rng(1)
    lengths, positive = rng.integers(1, 100, 1000), np.arange(1000) < 100
    sampler = LikeLengths(lengths, positive, batch=10, seed=3, repeat=2)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 1100
    counts = np.bincount(rows, minlength=1000)
    assert (counts[:100] == 2).all() and (counts[100:] == 1).all()
    spread = np.mean([np.ptp(lengths[rows[i : i + 10]]) for i in range(0, 1000, 10)])
    assert spread < 10  # of 99 at random
    assert list(sampler) == rows  # of seed and epoch alone
    sampler.epoch = 1
    assert list(sampler) != rows


def test_balanced_sampling_draws_half_of_an_epoch_from_the_positives() -> None:
    positive = np.arange(1000) < 20
    rows = np.array(list(LikeLengths(np.ones(1000, int), positive, batch=8, seed=3, balanced=True)))
    assert len(rows) == 1000 and positive[rows].sum() == 500


def test_freezing_leaves_the_embeddings_and_lowest_layers_as_they_are() -> None:
    model, _ = build(EncoderConfig(config={**SMALL, "intermediate_size": 32}, max_vocab=200), ["some words here"] * 9)
    left = freeze(model, embeddings=True, layers=1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("embeddings" in name or "layer.0." in name for name in trained)
    assert any("layer.1." in name for name in trained)
    assert left == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    with pytest.raises(InvalidConfig, match=r"freeze_layers is 3, the encoder has 2 layers"):
        freeze(model, embeddings=False, layers=3)


@pytest.mark.parametrize(
    "options",
    [
        ["train.schedule=cosine_with_restarts", "train.restarts=2", "train.accumulation=2"],
        ["train.gradient_checkpointing=true", "train.pretokenize=false", "train.sampler=balanced"],
        ["train.precision=bf16", "train.class_weights=balanced", "train.label_smoothing=0.1"],
        ["encoder.freeze_embeddings=true", "data.counterfactuals=1", "data.patterns=30", "data.normalize=true"],
    ],
    ids=["restarts", "checkpointing", "bf16", "frozen"],
)
def test_every_option_trains(tmp_path: Path, comments_csv: Path, tiny_recipe: Path, options: list[str]) -> None:
    recipe = read_recipe(tiny_recipe, ["train.epochs=1", *options])
    info = fit(recipe, Sources(comments_csv), tmp_path / "a")
    assert info is not None and info["throughput"]["comments_per_s"] > 0
    load(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # no run folder left


def test_fp16_is_refused_without_a_gpu(tmp_path: Path, comments_csv: Path, tiny_recipe: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidConfig, match="fp16, which needs a GPU.*use bf16 or fp32"):
        fit(read_recipe(tiny_recipe, ["train.precision=fp16"]), Sources(comments_csv), tmp_path / "a")


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path, comments_csv: Path, tiny_recipe: Path) -> None:
    # with this rate each epoch after the first is as good as chance
    recipe = read_recipe(
        tiny_recipe, ["train.epochs=30", "train.patience=2", "train.metric=loss", "train.learning_rate=0.05"]
    )
    info = fit(recipe, Sources(comments_csv), tmp_path / "a")
    assert info is not None
    assert info["throughput"]["comments"] < 30 * 450  # it stopped before the end


def test_a_student_learns_from_its_teacher_and_unlabelled_comments(
    artifact: Path, tmp_path: Path, comments_csv: Path, tiny_recipe: Path
) -> None:
    (tmp_path / "more.csv").write_text("text\n" + "".join(f"a stupid idiot number {i}\n" for i in range(50)))
    recipe = read_recipe(tiny_recipe, ["train.epochs=9", "distillation.weight=1", "distillation.hidden_weight=0.5"])
    info = fit(
        recipe, Sources(comments_csv, teacher=artifact, unlabelled=(tmp_path / "more.csv",)), tmp_path / "student"
    )
    assert info is not None and info["metrics"]["validation"]["mean_roc_auc"] > 0.9  # it never saw a true label
    assert info["teacher"] == "tiny" and info["throughput"]["comments"] >= 9 * 500
    model, _, _ = load(tmp_path / "student")
    assert not any("projection" in name for name, _ in model.named_parameters())


def test_the_next_student_reads_what_its_teacher_said_to_the_one_before(
    artifact: Path, tmp_path: Path, comments_csv: Path, tiny_recipe: Path
) -> None:
    keep = Options(keep=tmp_path / "kept")
    recipe = read_recipe(tiny_recipe, ["train.epochs=9", "distillation.weight=1"])
    fit(recipe, Sources(comments_csv, teacher=artifact), tmp_path / "one", keep)
    (kept,) = (tmp_path / "kept").iterdir()
    np.savez(kept, logits=-np.load(kept)["logits"])
    info = fit(recipe, Sources(comments_csv, teacher=artifact), tmp_path / "two", keep)
    assert info is not None and info["metrics"]["validation"]["mean_roc_auc"] < 0.1
    linear = read_recipe("linear", ["data.validation={fraction: 0.1}", "data.tuning={fraction: 0.1}"])
    fit(linear, Sources(comments_csv), tmp_path / "linear")
    info = fit(recipe, Sources(comments_csv, teacher=tmp_path / "linear"), tmp_path / "three", keep)
    assert info is not None and info["metrics"]["validation"]["mean_roc_auc"] > 0.9
    assert len(list((tmp_path / "kept").iterdir())) == 2  # another teacher was asked itself
    with pytest.raises(InvalidConfig, match="--keep without a teacher"):
        fit(recipe, Sources(comments_csv), tmp_path / "four", keep)


def command(out: Path, csv: Path, recipe: Path, *more: str) -> list[str]:
    fit_command = ["fit", "--config", str(recipe), "--data", str(csv), "--out", str(out)]
    return [*fit_command, "--set", "train.save_steps=7", "--set", "train.patience=9", *more]


def run(arguments: list[str], launcher: tuple[str, ...] = ("-m",)) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "train", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error of a process that ends by itself."""
    _, errors = process.communicate(timeout=250)
    return process.returncode, errors


def outcome(folder: Path) -> dict[str, object]:
    return {
        "metrics": Layout(folder).read_training_info()["metrics"],
        "labels": Layout(folder).read_labels(),
        "scores": [row["scores"] for row in Layout(folder).read_validation()],
    }


@pytest.mark.parametrize(("checkpoints", "pretrain_epochs"), [(1, 0), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_a_run_killed_and_resumed_ends_like_an_unbroken_one(
    tmp_path: Path, comments_csv: Path, tiny_recipe: Path, checkpoints: int, pretrain_epochs: int
) -> None:
    """Killed somewhere behind its first or fourth checkpoint: at a step, while it evaluates, or while it saves."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--set", f"train.pretrain_epochs={pretrain_epochs}"]
    code, errors = finish(run(command(whole, comments_csv, tiny_recipe, *more)))
    assert code == 0, errors

    victim = run(command(broken, comments_csv, tiny_recipe, *more))
    deadline = time.monotonic() + 200
    while not (tmp_path / f"broken.run/checkpoint-{7 * checkpoints}").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not broken.exists()

    if checkpoints == 1:
        code, errors = finish(run(command(broken, comments_csv, tiny_recipe, *more)))
        assert code == 2 and "go on from it with --resume" in errors
        code, errors = finish(run(command(broken, comments_csv, tiny_recipe, "--resume", "--set", "train.seed=5")))
        assert code == 2 and "with another recipe" in errors
    code, errors = finish(run(command(broken, comments_csv, tiny_recipe, *more, "--resume")))
    assert code == 0, errors
    assert outcome(broken) == outcome(whole)
    if checkpoints > 1:  # killed while it wrote its first, it had to begin again
        cost, resumed = (Layout(folder).read_training_info()["throughput"] for folder in (whole, broken))
        assert resumed["comments"] < cost["comments"]
        assert "pretraining" in cost and "pretraining" not in resumed  # not a second time


def test_half_written_checkpoints_do_not_count(tmp_path: Path) -> None:
    for step in (7, 14, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for step in (7, 14):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-14")


def test_checkpoints_beyond_the_limit_are_removed(tmp_path: Path, comments_csv: Path, tiny_recipe: Path) -> None:
    seen = set()
    victim = run(
        ["fit", "--config", str(tiny_recipe), "--data", str(comments_csv), "--out", str(tmp_path / "a")]
        + ["--set", "train.save_steps=5", "--set", "train.save_total_limit=2"]
    )
    while victim.poll() is None:
        seen.add(len(list((tmp_path / "a.run").glob(f"checkpoint-*/{COMPLETE}"))))
        time.sleep(0.002)
    assert finish(victim)[0] == 0
    assert 2 in seen and max(seen) <= 3  # the third for a moment, until the oldest is gone


def test_two_processes_train_one_model(tmp_path: Path, comments_csv: Path, tiny_recipe: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    arguments = ["fit", "--config", str(tiny_recipe), "--data", str(comments_csv), "--out", str(tmp_path / "a")]
    code, errors = finish(run([*arguments, "--set", "train.patience=9", "--set", "train.batch_size=8"], launcher))
    assert code == 0, errors
    assert errors.count("comments to train on") == 1  # the first process speaks, and writes
    info = json.loads((tmp_path / "a/training_info.json").read_text())
    assert info["throughput"]["processes"] == 2
    # each process did half of the steps' comments
    assert info["throughput"]["comments"] == pytest.approx(9 * 450 / 2, rel=0.05)
    assert info["metrics"]["validation"]["mean_roc_auc"] > 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_random_weights_need_an_architecture(comments_csv: Path, tmp_path: Path) -> None:
    recipe = read_recipe("minilm", ["data.validation={fraction: 0.1}", "data.tuning={fraction: 0.1}"])
    with pytest.raises(InvalidConfig, match=r"--random-weights needs the architecture in the recipe's encoder\.config"):
        fit(recipe, Sources(comments_csv), tmp_path / "a", Options(random_weights=True))


def test_a_run_is_logged_to_mlflow(tmp_path: Path, comments_csv: Path, tiny_recipe: Path) -> None:
    store = tmp_path / "store"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_ALLOW_FILE_STORE": "true"}
    environment["MLFLOW_TRACKING_URI"] = store.as_uri()
    arguments = ["fit", "--config", str(tiny_recipe), "--data", str(comments_csv), "--out", str(tmp_path / "a")]
    arguments += ["--mlflow", "moderation", "--set", "train.patience=9", "--set", "train.epochs=2"]
    command = [sys.executable, "-m", "train", *arguments]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    assert "name: moderation" in "".join(p.read_text() for p in store.glob("*/meta.yaml"))
    (logged,) = store.glob("*/*/metrics/eval_mean_roc_auc")
    assert len(logged.read_text().splitlines()) == 2  # an evaluation an epoch
    assert [p.name for p in tmp_path.iterdir() if p != store] == ["a"]
