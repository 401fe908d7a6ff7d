"""Fine-tune, calibrate, tune thresholds, evaluate, and write the artifact."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from train import data, metrics
from train.artifact import (
    LABELS,
    ClassifierConfig,
    Labels,
    Layout,
    check_writable,
    git_commit,
    machine,
    new_folder,
    write_json,
)
from train.config import EncoderConfig, InvalidConfig, Recipe, TrainConfig
from train.model import ToxicityClassifier, load_encoder, pad, predict_logits, pretrained_folder, save, sigmoid


def fit(recipe: Recipe, data_path: Path, out: Path) -> dict[str, Any]:
    """Train by ``recipe`` on ``data_path`` and write the artifact folder ``out``, whole or not at all.

    :returns: the content of ``training_info.json``.
    :raises InvalidData, InvalidConfig, InvalidArtifact, EncoderNotFound: before any training, with the reason.
    """
    check_writable(out)  # now, not after hours
    started, commit = time.monotonic(), git_commit()
    transformers.set_seed(recipe.train.seed)
    splits = data.split(data.read_table(data_path), recipe.data, recipe.train.seed)
    say(
        f"{len(splits.train)} comments to train on, {len(splits.tuning)} to tune on, {len(splits.validation)} to "
        f"validate on; {splits.dropped_duplicates} dropped because they also stand in validation"
    )
    model, tokenizer = build(recipe.encoder, splits.train.texts)
    examples = _examples(splits.train, tokenizer, model.config.max_tokens, recipe.data.repeat_positives)
    _train(model, tokenizer, examples, recipe.train)

    tuning_logits = predict_logits(model, tokenizer, splits.tuning.texts, progress="tuning")
    slope, offsets = metrics.fit_calibration(tuning_logits, splits.tuning.labels)
    fold_calibration(model, slope, offsets)
    calibrated = sigmoid(slope * tuning_logits + offsets)
    labels = Labels(LABELS, metrics.best_f1_thresholds(calibrated, splits.tuning.labels, LABELS))

    scores = sigmoid(predict_logits(model, tokenizer, splits.validation.texts, progress="validation"))
    validation = metrics.evaluate(scores, splits.validation.labels, LABELS, labels.thresholds)
    info = {
        "recipe": asdict(recipe),
        "metrics": {"validation": validation},
        "calibration": {"slope": slope, "offsets": dict(zip(LABELS, offsets.tolist(), strict=True))},
        "data": {
            "file": data_path.name,
            "sha256": data.file_sha256(data_path),
            "train": len(splits.train),
            "tuning": len(splits.tuning),
            "validation": len(splits.validation),
            "dropped_duplicates": splits.dropped_duplicates,
        },
        "seed": recipe.train.seed,
        "seconds": round(time.monotonic() - started, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": machine(),
        "versions": versions(),
        "git_commit": commit,
    }
    with new_folder(out) as folder:
        save(model, tokenizer, folder)
        write_json(Layout(folder).labels, labels)
        write_json(Layout(folder).training_info, info)
        write_validation(Layout(folder).validation, splits.validation, scores)
    return info


def write_validation(path: Path, comments: data.Comments, scores: np.ndarray) -> None:
    """One JSON object a line: text, labels, scores. Later stages compare against it; it is not meant for publishing."""
    with path.open("w", encoding="utf-8") as file:
        for text, labels, row in zip(comments.texts, comments.labels, scores, strict=True):
            values = {"text": text, "labels": labels.astype(int).tolist(), "scores": np.round(row, 6).tolist()}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def build(config: EncoderConfig, texts: list[str]) -> tuple[ToxicityClassifier, PreTrainedTokenizerFast]:
    """The untrained classifier and its tokenizer; an encoder from scratch learns its vocabulary from ``texts``."""
    if config.pretrained is not None:
        encoder, encoder_values = load_encoder(config.pretrained)
        limit = getattr(encoder.config, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > limit:
            raise InvalidConfig(f"encoder.max_tokens is {config.max_tokens}, {config.pretrained} reads at most {limit}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained_folder(config.pretrained))
    else:
        tokenizer = learn_tokenizer(texts, config.max_vocab)
        encoder = None
        encoder_values = {
            **(config.config or {}),
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            # RoBERTa's position numbers start behind the padding id
            "max_position_embeddings": config.max_tokens + tokenizer.pad_token_id + 1,
        }
    classifier = ClassifierConfig(encoder_values, config.pooling, config.max_tokens, config.dropout)
    model = ToxicityClassifier(classifier, encoder)
    if config.encoder_dropout is not None:
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.encoder_dropout
    return model, tokenizer


def learn_tokenizer(texts: list[str], max_vocab: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens, its vocabulary learnt from ``texts``."""
    from tokenizers.implementations import BertWordPieceTokenizer

    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, vocab_size=max_vocab, min_frequency=2, show_progress=False)
    return transformers.BertTokenizerFast(tokenizer_object=learner._tokenizer, do_lower_case=True)


@torch.no_grad()
def fold_calibration(model: ToxicityClassifier, slope: float, offsets: np.ndarray) -> None:
    """Put ``sigmoid(slope * logit + offset)`` into the head's own weights, so that serving needs no extra step."""
    model.head.weight.mul_(slope)
    model.head.bias.mul_(slope).add_(torch.from_numpy(offsets).to(model.head.bias))


def _examples(
    comments: data.Comments, tokenizer: PreTrainedTokenizerFast, max_tokens: int, repeat_positives: int
) -> list[dict[str, Any]]:
    ids = tokenizer(comments.texts, truncation=True, max_length=max_tokens)["input_ids"]
    examples = []
    for row, labels in zip(ids, comments.labels, strict=True):
        example = {"input_ids": row, "labels": labels}
        examples.extend([example] * (repeat_positives if labels.any() else 1))
    return examples


def _train(
    model: ToxicityClassifier, tokenizer: PreTrainedTokenizerFast, examples: list[dict[str, Any]], config: TrainConfig
) -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = pad([r["input_ids"] for r in rows], tokenizer.pad_token_id)
        labels = torch.from_numpy(np.stack([r["labels"] for r in rows]))
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_ratio=config.warmup_ratio,
            max_grad_norm=config.max_grad_norm,
            lr_scheduler_type="linear",
            group_by_length=True,
            seed=config.seed,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,  # LossInProgressBar replaces it
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=collate,
            optimizers=(_optimizer(model, config), None),
            callbacks=[LossInProgressBar],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _optimizer(model: ToxicityClassifier, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with no weight decay on biases and norms, and a learning rate of its own for the new head."""
    decayed = [p for p in model.encoder.parameters() if p.ndim > 1]
    plain = [p for p in model.encoder.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
            {"params": list(model.head.parameters()), "lr": config.head_learning_rate, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )


class LossInProgressBar(ProgressCallback):
    """transformers' progress bar, with the loss beside the speed instead of one printed line per log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}", lr=f"{logs['learning_rate']:.1e}")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def say(message: str) -> None:
    sys.stderr.write(message + "\n")


def overridden(recipe: Recipe, epochs: float | None, seed: int | None) -> Recipe:
    """The recipe with what the command line overrides."""
    changes = {k: v for k, v in (("epochs", epochs), ("seed", seed)) if v is not None}
    return replace(recipe, train=replace(recipe.train, **changes))  # type: ignore[arg-type]
