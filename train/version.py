"""``MODEL_VERSION.json``: which version of a model an artifact holds, decided by comparing it with the one before.

MAJOR counts what a caller or a server notices: another architecture, other labels, another problem type or tokenizer.
MINOR counts other weights: a better model, or a new one of the same make.
PATCH counts the rest, with the same weights: other thresholds, calibration or metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from train import hashing
from train.artifact import InvalidArtifact, Layout, write_json

FIRST = "1.0.0"

TRAINING_ONLY = re.compile(
    r"^_|dropout|drop_rate|initializer|^architectures$|^transformers_version$|dtype$|gradient_checkpointing|^use_cache$|"
    r"^attn_implementation$|^(id2label|label2id|problem_type)$"
)
"""Keys of a transformers configuration that leave the network, as it is served, the same."""


class InvalidVersion(ValueError):
    """A version is not three numbers, or not higher than the one before."""


@dataclass(frozen=True)
class Facts:
    """What of an artifact decides about its version.

    :param architecture: kind, problem type, and what shapes the network: the encoder's values, pooling, the length
        texts are cut to, the normalizer's and the tokenizer's SHA-256; of linear models
        and of n-grams the kind of their features.
    :param weights_sha256: of the weights; see :func:`facts`.
    """

    architecture: dict[str, Any]
    labels: tuple[str, ...]
    weights_sha256: str


@dataclass(frozen=True)
class ModelVersion:
    """The content of ``MODEL_VERSION.json``.

    :param version: ``MAJOR.MINOR.PATCH``.
    :param change: what is new, in words.
    :param previous: the version before; ``None`` for the first.
    :param created: UTC, ISO 8601, to the second.
    """

    version: str
    change: str
    previous: str | None
    created: str
    architecture: dict[str, Any]
    labels: tuple[str, ...]
    weights_sha256: str

    def __post_init__(self) -> None:
        parse(self.version)


def parse(version: str) -> tuple[int, int, int]:
    """:raises InvalidVersion: for anything but three whole numbers with dots in between."""
    match = re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version)
    if match is None:
        raise InvalidVersion(f"the model version is {version!r}, must be MAJOR.MINOR.PATCH, for example {FIRST}")
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch)


def check_explicit(version: str | None, previous: ModelVersion | None) -> None:
    """:raises InvalidVersion: when ``version`` is given and cannot follow ``previous``; to be known before training."""
    if version is None:
        return
    given = parse(version)
    if previous is not None and given <= parse(previous.version):
        raise InvalidVersion(
            f"the model version is {version}, must be higher than the previous one, {previous.version}: give a higher "
            "one, or none to have it counted"
        )


def next_version(
    previous: ModelVersion | None, new: Facts, *, version: str | None = None, change: str | None = None
) -> ModelVersion:
    """The version of an artifact with the facts ``new``, after ``previous``.

    :param version: instead of the one that the comparison gives.
    :param change: what is new, in words, instead of those that the comparison gives.
    :raises InvalidVersion: when ``version`` is not higher than the previous one.
    """
    check_explicit(version, previous)
    reason, counted = _compared(previous, new)
    return ModelVersion(
        version=version or counted,
        change=change or reason,
        previous=previous.version if previous is not None else None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        architecture=new.architecture,
        labels=new.labels,
        weights_sha256=new.weights_sha256,
    )


def facts(folder: Path) -> Facts:
    """Read the facts of an artifact folder, ``transformer`` or ``linear``.

    The weights of a transformer are hashed tensor by tensor, so metadata in the file do not count; its head is hashed
    up to one factor and without its bias, because calibration is folded into just these. Those of a linear model are
    its weights, intercepts and vocabularies, without slope and offsets.

    :raises InvalidArtifact: when files are missing.
    """
    layout = Layout(folder)
    config = layout.read_config()
    architecture: dict[str, Any] = {"kind": config.kind, "problem_type": config.problem_type}
    architecture["normalizer_sha256"] = _file_sha256(layout.normalizer) if config.normalize else None
    if config.kind == "linear":
        recipe = layout.read_training_info().get("recipe", {}).get("linear") or {}
        features = ("model", "word_ngrams", "char_ngrams", "sublinear_tf")
        architecture |= {key: recipe.get(key) for key in features}
        weights = _linear_sha256(folder)
    elif config.kind == "ngrams":
        model = hashing.load(layout.ngrams)
        architecture["ngrams"] = asdict(model.settings)
        weights = hashlib.sha256(model.buckets.tobytes() + model.codes.tobytes()).hexdigest()
    else:
        architecture |= {
            "encoder": {k: v for k, v in sorted(config.encoder.items()) if not TRAINING_ONLY.search(k)},
            "pooling": config.pooling,
            "max_tokens": config.max_tokens,
            "tokenizer_sha256": _file_sha256(layout.tokenizer_json),
        }
        weights = _tensors_sha256(layout.weights)
    return Facts(json.loads(json.dumps(architecture)), layout.read_labels().labels, weights)


def write(
    folder: Path, previous: ModelVersion | None = None, version: str | None = None, *, change: str | None = None
) -> ModelVersion:
    """Write the ``MODEL_VERSION.json`` of the artifact in ``folder``, the successor of ``previous``.

    :param version: as in :func:`next_version`, and ``change``.
    """
    result = next_version(previous, facts(folder), version=version, change=change)
    write_json(Layout(folder).model_version, result)
    return result


def read(folder: Path) -> ModelVersion | None:
    """The version of the artifact in ``folder``; ``None`` where the folder or the file is not there.

    :raises InvalidArtifact: for a file that holds something else.
    """
    path = Layout(folder).model_version
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ModelVersion(**(raw | {"labels": tuple(raw["labels"])}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidArtifact(f"{path} holds no model version ({error}): remove it to begin at {FIRST} again") from None


def _compared(previous: ModelVersion | None, new: Facts) -> tuple[str, str]:
    """What is new in words, and the version that follows from it."""
    if previous is None:
        return "first version", FIRST
    major, minor, patch = parse(previous.version)
    if previous.labels != new.labels:
        words = f"labels {', '.join(previous.labels)} became {', '.join(new.labels)}"
        return f"MAJOR: {words}", f"{major + 1}.0.0"
    old = json.loads(json.dumps(previous.architecture))
    changed = sorted(k for k in {*old, *new.architecture} if old.get(k) != new.architecture.get(k))
    if changed:
        words = "; ".join(_change(k, old.get(k), new.architecture.get(k)) for k in changed)
        return f"MAJOR: {words}", f"{major + 1}.0.0"
    if previous.weights_sha256 != new.weights_sha256:
        return "MINOR: new weights", f"{major}.{minor + 1}.0"
    return "PATCH: same weights; thresholds, calibration or metadata", f"{major}.{minor}.{patch + 1}"


def _change(key: str, old: Any, new: Any) -> str:
    if key.endswith("_sha256"):
        return f"another {key.removesuffix('_sha256')}"
    if isinstance(old, dict) and isinstance(new, dict):
        changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        return "; ".join(_change(f"{key}.{k}", old.get(k), new.get(k)) for k in changed)
    return f"{key} {old} became {new}"


def _file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise InvalidArtifact(f"{path} is missing: write an artifact with `python -m train fit`") from None


def _tensors_sha256(path: Path) -> str:
    from safetensors.numpy import load_file

    if not path.is_file():
        raise InvalidArtifact(f"{path} is missing: write an artifact with `python -m train fit`")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        if name == "head.bias":
            continue
        if name == "head.weight":
            # so coarse that the rounding of a folded slope does not show, so many numbers that another head does
            direction = tensor / max(float(np.linalg.norm(tensor)), 1e-12)
            tensor = np.rint(100 * direction).astype(np.int16)
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _linear_sha256(folder: Path) -> str:
    from train.linear import load

    model = load(folder)
    digest = hashlib.sha256()
    for vectorizer in model.vectorizers:
        digest.update("\n".join(vectorizer.get_feature_names_out()).encode())
        digest.update(np.ascontiguousarray(vectorizer.idf_).tobytes())
    for array in (model.weights, model.intercepts):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
