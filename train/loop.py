"""The training loop for every transformer: transformers' ``Trainer`` with what toxicity data needs around it.

The Trainer brings mixed precision, accumulation, clipping, schedules, checkpoints and several processes. Added here:
the losses, batches of like length whose order depends on seed and epoch alone (so that a resumed run sees the batches
that the unbroken one would have seen), balanced sampling, evaluation on the tuning comments, and checkpoints that
count only when they are whole.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from train.config import DistillationConfig, InvalidConfig, TrainConfig
from train.model import ToxicityClassifier, pad
from train.pretrain import MaskedLanguage, Pieces

COMPLETE = "complete"
"""A file in every checkpoint folder that was written to its end."""


@dataclass(frozen=True)
class Teaching:
    """What a teacher says of the training comments.

    :param logits: FP32. *Shape:* ``(comments, labels)``
    :param states: its pooled states, where the student is to learn them. *Shape:* ``(comments, teacher's hidden)``
    """

    logits: np.ndarray
    states: np.ndarray | None = None


class Examples(torch.utils.data.Dataset):
    """Comments as the loop reads them; tokenized when they are asked for, unless ``tokenize`` is already done.

    :param tokenize: texts to token ids.
    :param labels: 0, 1 or NaN for unknown. *Shape:* ``(comments, labels)``
    :ivar lengths: tokens of each comment, or its characters where it is not tokenized yet.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: np.ndarray,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        pretokenize: bool,
        teaching: Teaching | None = None,
    ) -> None:
        self.texts, self.labels, self.tokenize, self.teaching = texts, labels, tokenize, teaching
        self.rows = tokenize(texts) if pretokenize else None
        self.lengths = np.array([len(row) for row in self.rows or texts])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i] if self.rows is not None else self.tokenize([self.texts[i]])[0]
        example = {"input_ids": row, "labels": self.labels[i]}
        if self.teaching is not None:
            example["teacher_logits"] = self.teaching.logits[i]
            if self.teaching.states is not None:
                example["teacher_states"] = self.teaching.states[i]
        return example


class Objective(nn.Module):
    """The classifier with its loss: what the Trainer trains, and what a checkpoint holds.

    :param mask_id: the token that ``token_dropout`` puts in the place of others.
    :param soft_weights: what each label's soft loss counts; ``None`` for all alike. *Shape:* ``(labels,)``
    """

    def __init__(
        self,
        model: ToxicityClassifier,
        config: TrainConfig,
        weights: Tensor | None = None,
        distillation: DistillationConfig | None = None,
        teacher_hidden: int | None = None,
        mask_id: int | None = None,
        soft_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if config.token_dropout and mask_id is None:
            raise InvalidConfig(
                f"train.token_dropout is {config.token_dropout}, but the tokenizer has no mask token: set it to 0"
            )
        self.model, self.smoothing, self.distillation = model, config.label_smoothing, distillation
        self.token_dropout, self.mask_id = config.token_dropout, mask_id
        self.single = model.config.problem_type == "single_label_classification"
        self.weights: Tensor | None
        self.register_buffer("weights", weights, persistent=False)
        self.soft_weights: Tensor | None
        self.register_buffer("soft_weights", soft_weights, persistent=False)
        self.projection = nn.Linear(model.head.in_features, teacher_hidden) if teacher_hidden else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        teacher_states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """:param labels: 0, 1 or NaN for unknown. *Shape:* ``(batch, labels)``; :returns: the mean ``loss``."""
        if self.training and self.token_dropout:
            hidden = torch.rand(input_ids.shape, device=input_ids.device) < self.token_dropout
            hidden[:, 0] = False  # [CLS], the state that `cls` pools
            assert self.mask_id is not None
            input_ids = input_ids.masked_fill(hidden & attention_mask.bool(), self.mask_id)
        pooled = self.model.pooled(input_ids, attention_mask)
        logits = self.model.head(self.model.dropout(pooled)).float()
        hard, known = self.hard(logits, labels.float())
        if teacher_logits is None or self.distillation is None:
            return {"loss": hard.sum() / known.sum().clamp(min=1.0)}
        soft = self.soft(logits, teacher_logits.float())
        # of each comment: the mean over its known labels
        known_labels = known.sum(1)
        hard = hard.sum(1) / known_labels.clamp(min=1.0)
        weight = self.distillation.weight
        loss = torch.where(known_labels > 0, (1 - weight) * hard + weight * soft, soft).mean()
        if teacher_states is not None and self.projection is not None:
            likeness = nn.functional.cosine_similarity(self.projection(pooled.float()), teacher_states.float())
            loss = loss + self.distillation.hidden_weight * (1 - likeness).mean()
        return {"loss": loss}

    def hard(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss against the true labels and where they are known. *Shape:* ``(batch, labels)``; ``(batch, 1)`` twice
        for a single-label model.
        """
        known = ~labels.isnan()
        truth = labels.nan_to_num()
        smoothing = self.smoothing
        if self.single:
            loss = nn.functional.cross_entropy(
                logits, truth.argmax(1), weight=self.weights, label_smoothing=smoothing, reduction="none"
            )
            whole = known.all(1, keepdim=True).float()
            return loss.unsqueeze(1) * whole, whole
        truth = truth * (1 - smoothing) + smoothing / 2
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=self.weights, reduction="none")
        return loss * known, known.float()

    def soft(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy against the teacher's probabilities, both at the temperature. *Shape:* ``(batch,)``."""
        assert self.distillation is not None
        t = self.distillation.temperature
        if self.single:
            return -(torch.softmax(teacher / t, 1) * torch.log_softmax(logits / t, 1)).sum(1) * t**2
        loss = nn.functional.binary_cross_entropy_with_logits(logits / t, torch.sigmoid(teacher / t), reduction="none")
        if self.soft_weights is not None:
            loss = loss * self.soft_weights
        return loss.mean(1) * t**2


def soft_weights(logits: np.ndarray, power: float) -> Tensor:
    """See ``balance`` of :class:`train.config.DistillationConfig`; 1 on average. *Shape:* ``(labels,)``

    :param logits: the teacher's. *Shape:* ``(comments, labels)``
    """
    shares = np.maximum((0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).mean(axis=0), 1e-4)
    weights = shares**-power
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def class_weights(labels: np.ndarray, problem_type: str, limit: float) -> Tensor:
    """Inverse-frequency weights. *Shape:* ``(labels,)``.

    Multi-label: negatives / positives, the ``pos_weight`` of PyTorch's binary cross-entropy. Single-label:
    n / (classes x count), scikit-learn's ``balanced``. Neither is above ``limit``.
    """
    positives = np.nansum(labels, axis=0)
    known = (~np.isnan(labels)).sum(axis=0)
    if problem_type == "single_label_classification":
        weights = known / np.maximum(len(positives) * positives, 1.0)
    else:
        weights = (known - positives) / np.maximum(positives, 1.0)
    return torch.tensor(np.minimum(weights, limit), dtype=torch.float32)


class LikeLengths(torch.utils.data.Sampler):
    """Row numbers such that batches hold comments of like length; a function of seed and :attr:`epoch` alone.

    Rows are shuffled, cut into groups of 50 batches, sorted by length within a group, and the batches are shuffled.

    :param positive: rows that count as positive, for ``repeat`` and ``balanced``. *Shape:* ``(comments,)``
    :param repeat: how often an epoch shows a positive row.
    :param balanced: half of an epoch's rows are positive, drawn with replacement; as many rows as there are.
    """

    def __init__(
        self, lengths: np.ndarray, positive: np.ndarray, batch: int, seed: int, repeat: int = 1, balanced: bool = False
    ) -> None:
        self.lengths, self.positive, self.batch, self.seed = lengths, positive, batch, seed
        self.repeat, self.balanced, self.epoch = repeat, balanced and 0 < positive.sum() < len(positive), 0

    def __len__(self) -> int:
        extra = 0 if self.balanced else (self.repeat - 1) * int(self.positive.sum())
        return len(self.lengths) + extra

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = np.arange(len(self.lengths))
        if self.balanced:
            half = len(rows) // 2
            drawn = [rng.choice(rows[self.positive], half), rng.choice(rows[~self.positive], len(rows) - half)]
            rows = np.concatenate(drawn)
        else:
            rows = np.concatenate([rows, *[rows[self.positive]] * (self.repeat - 1)])
        rng.shuffle(rows)
        group = 50 * self.batch
        ordered = [
            part[np.argsort(-self.lengths[part], kind="stable")]
            for part in (rows[i : i + group] for i in range(0, len(rows), group))
        ]
        whole = np.concatenate(ordered)
        batches = [whole[i : i + self.batch] for i in range(0, len(whole), self.batch)]
        last = [batches.pop()] if len(batches[-1]) < self.batch else []  # the short one stays last
        for i in rng.permutation(len(batches)):
            yield from batches[i].tolist()
        for short in last:
            yield from short.tolist()


def run(
    objective: Objective | MaskedLanguage,
    examples: Examples | Pieces,
    sampler: LikeLengths,
    config: TrainConfig,
    folder: Path,
    pad_id: int,
    evaluate: Callable[[], dict[str, float]],
    resume: bool = False,
    max_steps: int = -1,
    mlflow: str | None = None,
) -> dict[str, Any]:
    """Train ``objective`` in place; checkpoints go to ``folder``.

    :param evaluate: metrics of the tuning comments, by the names in :data:`train.config.METRICS`.
    :param resume: go on from the last whole checkpoint in ``folder``.
    :param max_steps: stop after so many steps, without evaluations and checkpoints: to measure speed.
    :param mlflow: the name of an MLflow experiment to log to (``MLFLOW_TRACKING_URI`` says where).
    :returns: see :func:`throughput`.
    :raises InvalidConfig: when the device cannot do what the recipe asks for.
    """
    gpu = torch.cuda.is_available()
    if config.precision == "fp16" and not gpu:
        raise InvalidConfig("train.precision is fp16, which needs a GPU; this machine has none: use bf16 or fp32")
    if mlflow is not None:
        if importlib.util.find_spec("mlflow") is None:
            raise InvalidConfig("--mlflow needs the package mlflow: pip install mlflow, or leave the option out")
        os.environ["MLFLOW_EXPERIMENT_NAME"] = mlflow
    when = "steps" if config.save_steps is not None else "epoch"
    select = config.patience is not None and max_steps < 0
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=max_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_ratio=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.schedule,
        lr_scheduler_kwargs={"num_cycles": config.restarts} if config.schedule == "cosine_with_restarts" else {},
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        seed=config.seed,
        logging_steps=20,
        save_strategy="no" if max_steps > 0 else when,
        eval_strategy=when if select else "no",
        save_steps=config.save_steps or 500,
        eval_steps=config.save_steps or 500,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=select,
        metric_for_best_model=f"eval_{config.metric}" if select else None,
        greater_is_better=config.metric != "loss",
        report_to=["mlflow"] if mlflow is not None else [],
        disable_tqdm=True,  # LossInProgressBar replaces it
        remove_unused_columns=False,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        ddp_find_unused_parameters=True,  # BERT's own pooler has no part in the loss
        restore_callback_states_from_checkpoint=True,  # how often the metric has not improved
    )
    if config.gradient_checkpointing:
        objective.model.encoder.gradient_checkpointing_enable({"use_reentrant": False})

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids, attention_mask = pad([r["input_ids"] for r in rows], pad_id)
        others = {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0] if k != "input_ids"}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **others}

    epochs = EpochForSampler(sampler)
    patience = [EarlyStoppingCallback(config.patience)] if select else []
    trainer = TuningTrainer(
        model=objective,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples,  # asked for, not read: `evaluate` knows the tuning comments
        data_collator=collate,
        optimizers=(optimizer(objective, config), None),
        callbacks=[epochs, *patience, LossInProgressBar],
    )
    trainer.sampler, trainer.tuning_metrics = sampler, evaluate
    trainer.remove_callback(PrinterCallback)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    checkpoint = last_checkpoint(folder) if resume else None
    try:
        best = stopped_early(checkpoint, config.patience)
        if best is not None:  # killed between the last evaluation and the end
            objective.load_state_dict(load_file(best / "model.safetensors"))
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        if config.gradient_checkpointing:
            objective.model.encoder.gradient_checkpointing_disable()
    seconds = time.monotonic() - started
    return throughput(seconds, epochs.steps * config.batch_size * config.accumulation)


def throughput(seconds: float, comments: int) -> dict[str, Any]:
    """What training ``comments`` cost this process, evaluation and checkpoints included.

    ``peak_memory_bytes`` is the process's resident memory, or the memory allocated on the GPU where one is used.
    """
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else peak_resident_bytes()
    rate = round(comments / seconds, 1) if seconds else 0.0
    return {"seconds": round(seconds, 1), "comments": comments, "comments_per_s": rate, "peak_memory_bytes": peak}


def peak_resident_bytes() -> int:
    """The most memory that this process held. getrusage would count what its parent held when it was started."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in ``folder``."""
    whole = [p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None


def stopped_early(checkpoint: str | None, patience: int | None) -> Path | None:
    """The best checkpoint, where the run that wrote ``checkpoint`` had run out of patience."""
    if checkpoint is None or patience is None:
        return None
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    counter = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]["early_stopping_patience_counter"]
    return Path(checkpoint).parent / Path(state["best_model_checkpoint"]).name if counter >= patience else None


def optimizer(objective: Objective | MaskedLanguage, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with no weight decay on biases and norms, and a learning rate of its own for what is new."""
    trained = [p for p in objective.model.encoder.parameters() if p.requires_grad]
    encoder = {id(p) for p in objective.model.encoder.parameters()}
    new = [p for p in objective.parameters() if id(p) not in encoder]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        {"params": new, "lr": config.head_learning_rate or config.learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


class TuningTrainer(Trainer):
    """The Trainer with a sampler of ours, evaluation by a function, and checkpoints marked when they are whole."""

    sampler: LikeLengths
    tuning_metrics: Callable[[], dict[str, float]]
    control: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
        return self.sampler

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.model.eval()
        values = {f"eval_{name}": value for name, value in self.tuning_metrics().items()}
        self.model.train()
        self.log(dict(values))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, values)
        return values

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        # the last thing that a save does: the new checkpoint is whole, older ones may go
        (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()
        # by number: times of change may be those of a copy
        super()._rotate_checkpoints(use_mtime=False, output_dir=output_dir)


class EpochForSampler(TrainerCallback):
    """Tells the sampler the epoch's number, also after a resume, and counts this process's steps."""

    def __init__(self, sampler: LikeLengths) -> None:
        self.sampler, self.steps = sampler, 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.epoch = int((state.epoch or 0.0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


class LossInProgressBar(ProgressCallback):
    """transformers' progress bar, with the loss beside the speed instead of one printed line per log entry."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.shown |= {"loss": f"{logs['loss']:.4f}", "lr": f"{logs['learning_rate']:.1e}"}
        self.shown |= {k.removeprefix("eval_"): f"{v:.4f}" for k, v in logs.items() if k.startswith("eval_")}
        self.training_bar.set_postfix(self.shown)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass  # no bar of the Trainer's own was opened
