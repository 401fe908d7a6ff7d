"""The artifact folder: what ``train`` writes and ``export`` reads.

::

    artifacts/<name>/
        config.json           kind, problem type, and what it takes to build the model without its weights
        model.safetensors     transformer: encoder and head, FP32
        tokenizer/            transformer: tokenizer.json and its transformers config
        model.joblib          linear: features and models, scikit-learn
        model.npz             ngrams: buckets and their weights, INT8
        normalizer.py         where the text normalizer is on: the code that ran in training
        calibration.json      where scores are calibrated by isotonic regression: its steps
        labels.json           labels in order, and the decision threshold of each
        training_info.json    metrics, data hash, seed, versions, git commit, the recipe
        MODEL_VERSION.json    MAJOR.MINOR.PATCH of the model, and what changed
        validation.jsonl      the validation comments with labels and scores: what an export is compared on
        tuning.jsonl          the same of the comments that calibration and thresholds come from

Nothing here needs torch, so that ``export`` can look before it loads.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LABELS: tuple[str, ...] = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
"""The labels in the order that every stage, file and tensor keeps."""

FORMAT_VERSION = 1
POOLINGS = ("mean", "cls", "max_mean")
KINDS = ("transformer", "linear", "ngrams")
PROBLEM_TYPES = ("multi_label_classification", "single_label_classification")
"""As transformers names them. Multi-label: an independent sigmoid each. Single-label: a softmax over all labels."""


class InvalidArtifact(ValueError):
    """An artifact folder lacks a file or holds a value that this version cannot read."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The content of ``config.json``: all that is needed to build the network without its weights.

    :param kind: ``transformer``; ``linear`` and ``ngrams`` have no ``encoder``.
    :param encoder: a transformers configuration as a dict; ``model_type`` names the architecture.
    :param pooling: ``mean`` over the attended tokens, the state of the first token (``cls``), or ``max_mean``: the
        largest value of each state over the attended tokens, and the mean behind it.
    :param max_tokens: texts are cut to this many tokens, special ones included.
    :param normalize: texts pass the artifact's ``normalizer.py`` first.
    """

    encoder: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    max_tokens: int = 128
    dropout: float = 0.1
    problem_type: str = "multi_label_classification"
    normalize: bool = False
    kind: str = "transformer"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise InvalidArtifact(
                f"config.json has format_version {self.format_version}, this code reads {FORMAT_VERSION}: "
                "train again, or use the version of Tritox that wrote it"
            )
        for name, choices in (("kind", KINDS), ("pooling", POOLINGS), ("problem_type", PROBLEM_TYPES)):
            if getattr(self, name) not in choices:
                raise InvalidArtifact(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(choices)}")
        if self.max_tokens < 2:
            raise InvalidArtifact(f"max_tokens is {self.max_tokens}, must be at least 2")


@dataclass(frozen=True)
class Labels:
    """The content of ``labels.json``.

    :param thresholds: a decision is ``score >= threshold``; one per label, in [0, 1].
    """

    labels: tuple[str, ...] = LABELS
    thresholds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LABELS, 0.5))

    def __post_init__(self) -> None:
        if set(self.thresholds) != set(self.labels):
            raise InvalidArtifact(f"thresholds for {sorted(self.thresholds)}, but the labels are {list(self.labels)}")
        for label, threshold in self.thresholds.items():
            if not 0.0 <= threshold <= 1.0:
                raise InvalidArtifact(f"the threshold of {label} is {threshold}, must lie in [0, 1]")


@dataclass(frozen=True)
class Layout:
    """Where each file of an artifact lies."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def tokenizer_json(self) -> Path:
        return self.tokenizer / "tokenizer.json"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.json"

    @property
    def linear(self) -> Path:
        return self.folder / "model.joblib"

    @property
    def ngrams(self) -> Path:
        return self.folder / "model.npz"

    @property
    def normalizer(self) -> Path:
        return self.folder / "normalizer.py"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.json"

    @property
    def training_info(self) -> Path:
        return self.folder / "training_info.json"

    @property
    def model_version(self) -> Path:
        return self.folder / "MODEL_VERSION.json"

    @property
    def tuning(self) -> Path:
        return self.folder / "tuning.jsonl"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.jsonl"

    def read_by(self, config: ClassifierConfig) -> list[Path]:
        """The files beside the config that scores depend on."""
        files = {"linear": [self.linear], "ngrams": [self.ngrams]}.get(config.kind, [self.weights, self.tokenizer_json])
        return [*files, self.normalizer] if config.normalize else files

    def check(self) -> None:
        """:raises InvalidArtifact: naming every file that is missing."""
        config = self.read_config() if self.config.is_file() else ClassifierConfig()
        files = [self.config, self.labels, self.training_info, self.validation, *self.read_by(config)]
        missing = [str(f.relative_to(self.folder)) for f in files if not f.is_file()]
        if missing:
            raise InvalidArtifact(
                f"{self.folder} is not an artifact folder, it lacks {', '.join(missing)}: "
                "write one with `python -m train fit`"
            )

    def read_config(self) -> ClassifierConfig:
        return ClassifierConfig(**_read_json(self.config))

    def read_labels(self) -> Labels:
        raw = _read_json(self.labels)
        return Labels(tuple(raw["labels"]), raw["thresholds"])

    def read_training_info(self) -> dict[str, Any]:
        return _read_json(self.training_info)

    def read_validation(self) -> list[dict[str, Any]]:
        """Rows of ``text``, ``labels`` (0 or 1, in the order of the labels) and ``scores`` (the artifact's own)."""
        return _read_jsonl(self.validation)

    def read_tuning(self) -> list[dict[str, Any]]:
        """As :meth:`read_validation`, of the comments that calibration and thresholds come from."""
        return _read_jsonl(self.tuning)


def load_normalizer(layout: Layout) -> Callable[[str], str] | None:
    """The ``normalize_text`` of the artifact's own ``normalizer.py``; ``None`` where it is off."""
    return normalizer_from(layout.normalizer) if layout.read_config().normalize else None


def normalizer_from(path: Path) -> Callable[[str], str]:
    """The ``normalize_text`` of a copy of ``normalizer.py``."""
    spec = importlib.util.spec_from_file_location(f"normalizer_of_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    normalize: Callable[[str], str] = module.normalize_text
    return normalize


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = asdict(value) if hasattr(value, "__dataclass_fields__") else value  # type: ignore[call-overload]
    temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_writable(target: Path) -> None:
    """:raises InvalidArtifact: when :func:`new_folder` could not write ``target``."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent):
            reason = "it is a file" if target.is_file() else None
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InvalidArtifact(f"cannot write the artifact folder {target} ({reason}): choose another")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its name when the block ends well.

    An existing ``target`` is replaced only then; when the block raises, nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.replace(old / target.name)
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def machine() -> str:
    """The processor: speed depends on it, and so do the integer kernels that a quantized model runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` when the work tree differs; ``None`` outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine: hours of training must not end on that
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidArtifact(f"{path} is missing: write an artifact with `python -m train fit`") from None
    except json.JSONDecodeError as error:
        raise InvalidArtifact(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArtifact(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise InvalidArtifact(f"{path} is missing: train again with `python -m train fit`") from None
