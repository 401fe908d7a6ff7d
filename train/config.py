"""The recipe: one YAML file that says which model, which data, and how to train it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from train.artifact import POOLINGS, PROBLEM_TYPES

RECIPES = Path(__file__).parent / "recipes"
SCHEDULES = ("linear", "cosine", "cosine_with_restarts")
PRECISIONS = ("fp32", "bf16", "fp16")
METRICS = ("mean_roc_auc", "mean_pr_auc", "macro_f1", "loss")


class InvalidConfig(ValueError):
    """A recipe holds an unknown key or a value that cannot be used."""


@dataclass(frozen=True)
class EncoderConfig:
    """A transformer: ``pretrained`` weights, or an architecture (``config``) trained from scratch.

    Where both are given, ``config`` describes the architecture of ``pretrained`` and is used with
    ``--random-weights`` alone, for a machine that cannot reach the weights.

    :param pretrained: a pip package, a hub id or a local folder.
    :param layers: so many of the lowest layers of ``pretrained`` are taken; ``None`` takes all.
    :param config: values of a transformers configuration; ``model_type`` names the architecture.
    :param max_vocab: size of the vocabulary that an encoder from scratch learns from the training comments.
    :param embeddings: what an encoder from scratch begins with: ``random``, ``cooccurrence`` of the training comments'
        tokens (see :mod:`train.cooccurrence`), or those of the ``teacher``, reduced to their principal components; it
        then has the teacher's vocabulary, too.
    :param pooling: ``mean`` over the attended tokens, the state of the first token (``cls``), or ``max_mean``: the
        largest value of each state over the attended tokens, and the mean behind it.
    :param dropout: before the head.
    :param encoder_dropout: inside the encoder; ``None`` keeps what its own configuration says.
    :param max_tokens: texts are cut to this many tokens, special ones included.
    :param freeze_embeddings: the embeddings keep their weights.
    :param freeze_layers: so many of the lowest layers keep their weights.
    """

    pretrained: str | None = None
    layers: int | None = None
    config: dict[str, Any] | None = None
    max_vocab: int = 30_000
    embeddings: str = "random"
    pooling: str = "mean"
    dropout: float = 0.1
    encoder_dropout: float | None = None
    max_tokens: int = 128
    freeze_embeddings: bool = False
    freeze_layers: int = 0

    def __post_init__(self) -> None:
        if self.pretrained is None and self.config is None:
            raise InvalidConfig("encoder needs `pretrained` or `config`")
        if self.config is not None and "model_type" not in self.config:
            raise InvalidConfig("encoder.config lacks `model_type`, a transformers architecture such as bert")
        _one_of("encoder.pooling", self.pooling, POOLINGS)
        _one_of("encoder.embeddings", self.embeddings, ("random", "cooccurrence", "teacher"))
        if self.embeddings != "random" and self.pretrained is not None:
            raise InvalidConfig(
                f"encoder.embeddings is {self.embeddings}, but {self.pretrained} brings its own: leave it out"
            )
        _at_least("encoder.max_tokens", self.max_tokens, 2)
        _at_least("encoder.max_vocab", self.max_vocab, 100)
        _at_least("encoder.freeze_layers", self.freeze_layers, 0)
        if self.layers is not None:
            _at_least("encoder.layers", self.layers, 1)
            if self.pretrained is None:
                raise InvalidConfig(
                    f"encoder.layers is {self.layers}, but there is no `pretrained` encoder to take them from: give "
                    "the number of layers in encoder.config"
                )


@dataclass(frozen=True)
class LinearConfig:
    """TF-IDF features and one linear model per label, from scikit-learn.

    :param model: ``logreg`` (logistic regression) or ``svm`` (linear support vector machine).
    :param word_ngrams: shortest and longest word n-gram, both included.
    :param char_ngrams: the same of characters within words; ``None`` for no such features.
    :param max_features: most word n-grams, the most frequent ones first; ``char_features`` likewise.
    :param solver: of the logistic regression, by scikit-learn's name.
    :param class_weight: ``balanced`` or ``None``.
    :param naive_bayes: features are scaled by how much more often they stand in comments with the label than without
        (NB-SVM); costs nothing in scoring.
    """

    model: str = "logreg"
    word_ngrams: list[int] = field(default_factory=lambda: [1, 3])
    char_ngrams: list[int] | None = None
    max_features: int = 10_000
    char_features: int = 50_000
    sublinear_tf: bool = False
    c: float = 1.0
    solver: str = "saga"
    class_weight: str | None = "balanced"
    max_iterations: int = 1000
    naive_bayes: bool = False

    def __post_init__(self) -> None:
        _one_of("linear.model", self.model, ("logreg", "svm"))
        _one_of("linear.solver", self.solver, ("saga", "liblinear", "lbfgs"))
        _one_of("linear.class_weight", self.class_weight, ("balanced", None))
        for name in ("word_ngrams", "char_ngrams"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or not 1 <= value[0] <= value[1]):
                raise InvalidConfig(f"linear.{name} is {value}, must be two numbers such as [1, 3]")
        _at_least("linear.max_features", self.max_features, 1)
        _at_least("linear.char_features", self.char_features, 1)
        _above_zero("linear.c", self.c)


@dataclass(frozen=True)
class NgramConfig:
    """Hashed n-grams of words and characters: see :mod:`train.hashing` and :mod:`train.ngrams`.

    :param bits: n-grams are hashed into 2 ** bits buckets.
    :param characters: lengths of the runs of characters.
    :param words: longest run of words.
    :param max_bytes: of a text are read.
    :param rows: most buckets that get weights, the most frequent ones.
    :param min_count: how many comments a bucket must be in to get any.
    :param iterations: of the solver, at most; more of them fit the training comments better, not others.
    :param l2: strength of the penalty on the squared factors.
    """

    bits: int = 20
    characters: list[int] = field(default_factory=lambda: [3, 4, 5])
    words: int = 2
    max_bytes: int = 800
    rows: int = 150_000
    min_count: int = 5
    iterations: int = 40
    l2: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("rows", "min_count", "iterations"):
            _at_least(f"ngrams.{name}", getattr(self, name), 1)
        if self.l2 < 0:
            raise InvalidConfig(f"ngrams.l2 is {self.l2}, must be at least 0")


@dataclass(frozen=True)
class DataConfig:
    """What the columns mean, and how rows are split.

    :param format: a name in :data:`train.data.FORMATS`: the columns, the labels and the problem type.
    :param columns: instead of the format's columns: ``{text: column, labels: {label: column}}``.
    :param problem_type: instead of the format's.
    :param threshold: a label's value from which on it counts as 1, where values are fractions in [0, 1].
    :param validation: ``{column, from, to}`` takes the rows whose number in ``column`` lies in [from, to);
        ``{fraction}`` takes that share at random, stratified. A training text that also stands there is dropped.
    :param tuning: ``{rows, where}`` or ``{fraction, where}``: how many rows, stratified, of the training rows whose
        columns equal ``where``, are kept for calibration, thresholds and early stopping.
    :param repeat_positives: how often an epoch shows a comment with any label (single-label: one of any class but the
        most frequent).
    :param counterfactuals: comments that name an identity are repeated with another identity in its place: the
        number of such comments, as a share of the comments that name one. Reduces identity bias.
    :param patterns: so many generated sentences on identities, hostile and not, are trained on as well.
    :param normalize: the text normalizer runs before the tokenizer, in training and in serving.
    """

    format: str = "jigsaw"
    columns: dict[str, Any] | None = None
    problem_type: str | None = None
    threshold: float = 0.5
    validation: dict[str, Any] = field(default_factory=lambda: {"fraction": 0.1})
    tuning: dict[str, Any] = field(default_factory=lambda: {"fraction": 0.1})
    repeat_positives: int = 1
    counterfactuals: float = 0.0
    patterns: int = 0
    normalize: bool = False

    def __post_init__(self) -> None:
        if set(self.validation) not in ({"column", "from", "to"}, {"fraction"}):
            raise InvalidConfig(
                f"data.validation has the keys {sorted(self.validation)}, needs column, from, to; or fraction"
            )
        if set(self.tuning) - {"where"} not in ({"rows"}, {"fraction"}):
            raise InvalidConfig(
                f"data.tuning has the keys {sorted(self.tuning)}, needs rows or fraction and, if wanted, where"
            )
        if self.columns is not None and set(self.columns) != {"text", "labels"}:
            raise InvalidConfig(f"data.columns has the keys {sorted(self.columns)}, needs text and labels")
        if self.problem_type is not None:
            _one_of("data.problem_type", self.problem_type, PROBLEM_TYPES)
        _at_least("data.repeat_positives", self.repeat_positives, 1)
        if self.counterfactuals < 0:
            raise InvalidConfig(f"data.counterfactuals is {self.counterfactuals}, must be at least 0")
        _at_least("data.patterns", self.patterns, 0)


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser, its schedule and the loop; names as in transformers' ``TrainingArguments`` where it has them.

    :param accumulation: batches whose gradients are summed before a step.
    :param head_learning_rate: of the new head; ``None`` for the encoder's.
    :param schedule: after a linear warm-up: ``linear``, ``cosine`` or ``cosine_with_restarts`` (``restarts`` cycles).
    :param metric: of the tuning comments; decides which epoch's weights are kept, where ``patience`` is set.
    :param patience: stop after so many epochs without a better ``metric``; ``None`` trains to the end.
    :param precision: ``fp32``, or mixed ``bf16`` or ``fp16``.
    :param class_weights: ``balanced`` weighs labels by inverse frequency: multi-label by negatives / positives (the
        ``pos_weight`` of binary cross-entropy, at most ``max_class_weight``), single-label by n / (classes x count).
    :param sampler: ``shuffle``, or ``balanced``: half of an epoch's comments have a label, drawn with replacement.
    :param label_smoothing: single-label: the share of the target spread over all classes; multi-label: 0 and 1
        become half of it and 1 less half of it.
    :param token_dropout: the share of tokens that training hides behind ``[MASK]``, other ones at every sight of a
        comment: against learning comments by heart, at no cost. Source: Iyyer et al., "Deep unordered composition
        rivals syntactic methods for text classification", 2015 (there the words are left out).
    :param pretrain_epochs: so many epochs of masked-language pre-training on the training comments come first, with the
        same batch size, learning rate and schedule (see :mod:`train.pretrain`).
    :param pretokenize: tokenize all comments before the first step instead of on the fly.
    :param save_steps: steps between checkpoints; ``None`` for one an epoch.
    """

    epochs: float = 1.0
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-4
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    schedule: str = "linear"
    restarts: int = 1
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    metric: str = "mean_roc_auc"
    patience: int | None = None
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    class_weights: str | None = None
    max_class_weight: float = 50.0
    sampler: str = "shuffle"
    label_smoothing: float = 0.0
    token_dropout: float = 0.0
    pretrain_epochs: float = 0.0
    pretokenize: bool = True
    save_steps: int | None = None
    save_total_limit: int = 2
    seed: int = 17

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "restarts", "save_total_limit"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("patience", "save_steps"):
            if getattr(self, name) is not None:
                _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("epochs", "learning_rate", "max_grad_norm", "max_class_weight"):
            _above_zero(f"train.{name}", getattr(self, name))
        if self.pretrain_epochs < 0:
            raise InvalidConfig(f"train.pretrain_epochs is {self.pretrain_epochs}, must be at least 0")
        if self.head_learning_rate is not None:
            _above_zero("train.head_learning_rate", self.head_learning_rate)
        for name in ("warmup_ratio", "label_smoothing", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidConfig(f"train.{name} is {getattr(self, name)}, must lie in [0, 1)")
        _one_of("train.schedule", self.schedule, SCHEDULES)
        _one_of("train.metric", self.metric, METRICS)
        _one_of("train.precision", self.precision, PRECISIONS)
        _one_of("train.class_weights", self.class_weights, ("balanced", None))
        _one_of("train.sampler", self.sampler, ("shuffle", "balanced"))


@dataclass(frozen=True)
class DistillationConfig:
    """How a teacher's answers enter the student's loss, where ``--teacher`` names one.

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015.

    :param weight: of the soft labels; the true labels have the rest. Unlabelled comments have soft labels alone.
    :param temperature: divides the teacher's and the student's logits.
    :param hidden_weight: of the cosine distance between the student's pooled state, through a linear map that only
        training knows, and the teacher's; 0 for none.
    :param balance: what a label counts is divided by its mean soft label to this power: 0 leaves all alike, 0.5 makes
        rare labels heard. Multi-label transformers alone.
    :param sentences: so many sentences of training comments, half of them from comments with a label, are scored by the
        teacher as well: they tell which words it minds.
    """

    weight: float = 0.7
    temperature: float = 1.0
    hidden_weight: float = 0.0
    balance: float = 0.0
    sentences: int = 0

    def __post_init__(self) -> None:
        for name in ("balance", "sentences"):
            if getattr(self, name) < 0:
                raise InvalidConfig(f"distillation.{name} is {getattr(self, name)}, must be at least 0")
        if not 0 <= self.weight <= 1:
            raise InvalidConfig(f"distillation.weight is {self.weight}, must lie in [0, 1]")
        _above_zero("distillation.temperature", self.temperature)
        if self.hidden_weight < 0:
            raise InvalidConfig(f"distillation.hidden_weight is {self.hidden_weight}, must be at least 0")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe: an ``encoder``, a ``linear`` model or ``ngrams``, its data, and how it is trained."""

    data: DataConfig
    train: TrainConfig
    encoder: EncoderConfig | None = None
    linear: LinearConfig | None = None
    ngrams: NgramConfig | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        if [self.encoder, self.linear, self.ngrams].count(None) != 2:
            raise InvalidConfig("a recipe needs exactly one of the sections `encoder`, `linear` and `ngrams`")


SECTIONS: dict[str, Any] = {
    "encoder": EncoderConfig,
    "linear": LinearConfig,
    "ngrams": NgramConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "distillation": DistillationConfig,
}


def shipped_recipes() -> list[str]:
    """Names that :func:`read_recipe` takes besides paths."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the name of a shipped one, or by its path.

    :param overrides: ``section.key=value`` each, the value in YAML: ``train.epochs=2``.
    :raises InvalidConfig: naming the key, its value and what it may be.
    """
    path = RECIPES / f"{recipe}.yaml" if str(recipe) in shipped_recipes() else Path(recipe)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InvalidConfig(f"no recipe at {path}: give a YAML file or one of {', '.join(shipped_recipes())}") from None
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidConfig(f"{path} must hold the sections {', '.join(SECTIONS)}")
    for override in overrides:
        _override(raw, override)
    return parse_recipe(raw)


def parse_recipe(raw: dict[str, Any]) -> Recipe:
    """A recipe from the mapping that its YAML file or an artifact's ``training_info.json`` holds."""
    _known(raw, Recipe, "the recipe")
    chosen = ("encoder", "linear", "ngrams")
    return Recipe(
        **{
            name: _build(kind, raw.get(name), name)
            for name, kind in SECTIONS.items()
            if raw.get(name) is not None or name not in chosen
        }
    )


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one value of ``raw``: ``a.b.c=value``; mappings on the way are made where they lack."""
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or len(keys) < 2 or keys[0] not in SECTIONS:
        raise InvalidConfig(
            f"cannot override by {override!r}: give SECTION.KEY=VALUE with a section of {', '.join(SECTIONS)}, "
            "for example train.epochs=2"
        )
    place = raw
    for key in keys[:-1]:
        if not isinstance(place.get(key), dict):
            place[key] = {}
        place = place[key]
    try:
        place[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"cannot override by {override!r}, its value is not YAML: {error}") from None


def _build(kind: Any, raw: object, section: str) -> Any:
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise InvalidConfig(f"{section} must be a mapping, not {raw!r}")
    _known(raw, kind, section)
    values = {}
    for f in fields(kind):
        if f.name in raw:
            values[f.name] = _checked(f"{section}.{f.name}", raw[f.name], str(f.type), "None" in str(f.type))
    return kind(**values)


def _checked(name: str, value: Any, annotation: str, optional: bool) -> Any:
    """``value`` when it fits the field's annotation; YAML reads ``1e-5`` as a text, so numbers may come as one."""
    if value is None and optional:
        return None
    wanted = annotation.removesuffix(" | None")
    if wanted == "float" and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        "float": number,
        "int": number and value == int(value),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }.get(wanted, isinstance(value, list if wanted.startswith("list") else dict))
    if not fits:
        words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
        raise InvalidConfig(f"{name} is {value!r}, must be {words.get(wanted, wanted)}")
    return int(value) if wanted == "int" else value


def _known(raw: dict[str, Any], kind: Any, section: str) -> None:
    known = [f.name for f in fields(kind)]
    unknown = sorted(str(k) for k in set(raw) - set(known))
    if unknown:
        raise InvalidConfig(f"{section} has the unknown key {', '.join(unknown)}; it may hold {', '.join(known)}")


def _one_of(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise InvalidConfig(f"{name} is {value!r}, must be one of {', '.join(map(str, choices))}")


def _at_least(name: str, value: int, limit: int) -> None:
    if value < limit:
        raise InvalidConfig(f"{name} is {value}, must be at least {limit}")


def _above_zero(name: str, value: float) -> None:
    if value <= 0:
        raise InvalidConfig(f"{name} is {value}, must be above 0")
