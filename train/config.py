"""The recipe: one YAML file that says which encoder, which data, and how to train it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from train.artifact import POOLINGS


class InvalidConfig(ValueError):
    """A recipe holds an unknown key or a value that cannot be used."""


@dataclass(frozen=True)
class EncoderConfig:
    """Either ``pretrained`` (a pip package, hub id or folder) or ``config`` (an architecture trained from scratch).

    :param dropout: before the heads.
    :param encoder_dropout: inside the encoder; ``None`` keeps what its own configuration says.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    max_vocab: int = 30_000
    pooling: str = "mean"
    dropout: float = 0.1
    encoder_dropout: float | None = None
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.config is None):
            raise InvalidConfig("encoder needs exactly one of `pretrained` and `config`")
        if self.config is not None and "model_type" not in self.config:
            raise InvalidConfig("encoder.config lacks `model_type`, a transformers architecture such as bert")
        if self.pooling not in POOLINGS:
            raise InvalidConfig(f"encoder.pooling is {self.pooling!r}, must be one of {', '.join(POOLINGS)}")
        _at_least("encoder.max_tokens", self.max_tokens, 2)
        _at_least("encoder.max_vocab", self.max_vocab, 100)


@dataclass(frozen=True)
class DataConfig:
    """How rows are split.

    :param validation: ``{column, from, to}`` takes the rows whose number in ``column`` lies in [from, to);
        ``{fraction}`` takes that share at random. Any training text that also stands there is dropped.
    :param tuning: ``{rows, where}``: how many rows, taken at random from the training rows whose columns equal
        ``where``, are kept for calibration and thresholds.
    """

    validation: dict[str, Any] = field(default_factory=lambda: {"fraction": 0.1})
    tuning: dict[str, Any] = field(default_factory=lambda: {"rows": 1000})
    repeat_positives: int = 1

    def __post_init__(self) -> None:
        if set(self.validation) not in ({"column", "from", "to"}, {"fraction"}):
            raise InvalidConfig(
                f"data.validation has the keys {sorted(self.validation)}, needs column, from, to; or fraction"
            )
        if not {"rows"} <= set(self.tuning) <= {"rows", "where"}:
            raise InvalidConfig(f"data.tuning has the keys {sorted(self.tuning)}, needs rows and, if wanted, where")
        _at_least("data.repeat_positives", self.repeat_positives, 1)


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser and its schedule; names as in transformers' ``TrainingArguments``."""

    epochs: float = 1.0
    batch_size: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    seed: int = 17

    def __post_init__(self) -> None:
        _at_least("train.batch_size", self.batch_size, 1)
        for name in ("epochs", "learning_rate", "head_learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise InvalidConfig(f"train.{name} is {getattr(self, name)}, must be above 0")
        if not 0 <= self.warmup_ratio <= 1:
            raise InvalidConfig(f"train.warmup_ratio is {self.warmup_ratio}, must lie in [0, 1]")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe."""

    encoder: EncoderConfig
    data: DataConfig
    train: TrainConfig


def read_recipe(path: Path) -> Recipe:
    """:raises InvalidConfig: naming the key, its value and what it may be."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(str(p) for p in Path(__file__).parent.glob("recipes/*.yaml")))
        raise InvalidConfig(f"no recipe at {path}: give a YAML file, for example one of {shipped}") from None
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidConfig(f"{path} must hold the sections {', '.join(f.name for f in fields(Recipe))}")
    _known(raw, Recipe, "the recipe")
    return Recipe(
        _build(EncoderConfig, raw.get("encoder"), "encoder"),
        _build(DataConfig, raw.get("data"), "data"),
        _build(TrainConfig, raw.get("train"), "train"),
    )


def _build(kind: Any, raw: object, section: str) -> Any:
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise InvalidConfig(f"{section} must be a mapping, not {raw!r}")
    _known(raw, kind, section)
    types = {f.name: type(f.default) for f in fields(kind) if f.default is not MISSING and f.default is not None}
    for key, value in raw.items():
        wanted = types.get(key)
        if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, wanted))):
            raise InvalidConfig(
                f"{section}.{key} is {value!r}, must be {'a number' if wanted is float else 'a whole number'}"
            )
    return kind(**raw)


def _known(raw: dict[str, Any], kind: Any, section: str) -> None:
    known = [f.name for f in fields(kind)]
    unknown = sorted(str(k) for k in set(raw) - set(known))
    if unknown:
        raise InvalidConfig(f"{section} has the unknown key {', '.join(unknown)}; it may hold {', '.join(known)}")


def _at_least(name: str, value: int, limit: int) -> None:
    if value < limit:
        raise InvalidConfig(f"{name} is {value}, must be at least {limit}")
