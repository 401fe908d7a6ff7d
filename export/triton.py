"""What Triton reads: the configurations of a model's parts, rendered from one set of settings.

A configuration is built as Triton's own protobuf message, so a misspelt field fails here and not at server start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export import ragged

TEMPLATES = Path(__file__).parent / "templates"
CHARACTERS_PER_TOKEN = 64
"""A text is cut to this many characters per token that the model reads, before it is tokenized: no flood of text in one
row holds up the rows beside it."""
MAX_QUEUE_MS = 200


HEADER = "# Rendered by `python -m export.onnx`; export again instead of editing.\n"
CASCADE_FILES = {
    "model.py": "cascade_model.py",
    **{name: name for name in ("cascade_cache.py", "cascade_metrics.py", "cascade_queue.py", "texts.py")},
}
"""The files of a cascade's version that are templates, by their names there; beside them stand ``settings.json``, and
``normalizer.py`` and ``stages.py`` where they are used."""
CHARACTERS_OF_A_TOKEN = 5
"""On average, and rather more: what is read of a comment is estimated from its characters."""
PREVIOUS = "previous_version"
"""The ensemble's parameter that names the version to roll back to."""


class InvalidSettings(ValueError):
    """Serving settings that Triton or the model could not work with."""


@dataclass(frozen=True)
class ServingSettings:
    """All that the configurations depend on.

    :param instances: encoder sessions; each takes ``intra_op_threads`` threads.
    :param normalize: the version's ``normalizer.py`` runs before anything else.
    :param provenance: strings that tell where the model came from.
    :param kind: ``transformer``, or ``linear``, which has no tokenizer model of its own.
    :param tokenizers: processes that tokenize.
    :param queue_delay_us: how long the encoder's batcher waits for more requests, microseconds.
    :param max_batch_tokens: rows run together, of equal length, are at most so many tokens; 0 runs all rows together.
        Heeded by our own backend alone (see serve/backends/onnxruntime).
    :param preferred_batch_size: comments that an encoder session takes at once where more wait, so that those behind
        them need not wait for all; 0 takes up to ``max_batch_size``, as GPUs always do. On two cores 16 cost a tenth of
        the throughput while rows of like length were run together, which are fewer among them.
    :param target: ``cpu``, ``cuda`` or ``tensorrt``.
    :param max_queue_ms: a request is refused at once where those before it need longer than this; 0 refuses none.
    """

    name: str
    labels: tuple[str, ...]
    thresholds: dict[str, float]
    problem_type: str
    max_tokens: int
    pad_token_id: int
    precision: str
    provenance: dict[str, str]
    kind: str = "transformer"
    target: str = "cpu"
    max_batch_size: int = 64
    max_batch_tokens: int = 128
    preferred_batch_size: int = 0
    tokenizers: int = 1
    queue_delay_us: int = 0
    instances: int = 2
    intra_op_threads: int = 1
    normalize: bool = False
    max_queue_ms: int = MAX_QUEUE_MS

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InvalidSettings(f"the model's name is {self.name!r}: use letters, digits and underscores")
        least = dict.fromkeys(("max_batch_size", "instances", "intra_op_threads", "tokenizers"), 1)
        zeros = dict.fromkeys(("max_batch_tokens", "preferred_batch_size", "queue_delay_us", "max_queue_ms"), 0)
        for field, limit in {**least, **zeros}.items():
            if getattr(self, field) < limit:
                raise InvalidSettings(f"{field} is {getattr(self, field)}, must be at least {limit}")

    @property
    def max_characters(self) -> int:
        return self.max_tokens * CHARACTERS_PER_TOKEN


def read_settings(export_json: Path) -> ServingSettings:
    """The settings that a published version was rendered from, read back from its ``export.json``.

    :raises InvalidSettings: when an exporter of another version wrote it.
    """
    raw = json.loads(export_json.read_text(encoding="utf-8"))["settings"]
    try:
        return ServingSettings(**{**raw, "labels": tuple(raw["labels"])})
    except TypeError as error:
        raise InvalidSettings(
            f"{export_json} was written by another version of the exporter ({error}): export the model again, into an "
            "empty repository"
        ) from None


TUNABLE = (
    "max_batch_size",
    "max_batch_tokens",
    "preferred_batch_size",
    "tokenizers",
    "queue_delay_us",
    "max_queue_ms",
    "instances",
    "intra_op_threads",
)
"""What a machine decides, and not the model: may be changed after the export."""


def model_names(name: str, kind: str = "transformer") -> tuple[str, ...]:
    """The ensemble, and the models that it is made of, in the order of the data."""
    return (name, f"{name}_tokenizer", f"{name}_encoder") if kind == "transformer" else (name, f"{name}_encoder")


def candidate_name(name: str) -> str:
    """The ensemble that answers with a staged version, beside the served one."""
    return f"{name}_candidate"


def render(
    settings: ServingSettings, version: int, also: Sequence[int] = (), previous: int | None = None
) -> dict[str, str]:
    """The text of ``config.pbtxt`` for each of the models, by model name.

    :param version: the one that is served: the ensemble has no other, and its steps name it.
    :param also: further versions that the parts of the ensemble load.
    :param previous: the version that was served before; it is noted, for a rollback.
    """
    parts = [encoder(settings)]
    if settings.kind == "transformer":
        parts.insert(0, tokenizer(settings))
    whole = ensemble(settings, version, previous)
    for config in parts:
        config.version_policy.specific.versions.extend(sorted({version, *also}))
    return {config.name: HEADER + text_format.MessageToString(config) for config in (whole, *parts)}


def ensemble(settings: ServingSettings, version: int, previous: int | None = None) -> pb.ModelConfig:
    """What clients call. Its parameters tell them labels, thresholds and origin: nothing is configured twice."""
    config = pb.ModelConfig(name=settings.name, platform="ensemble", max_batch_size=settings.max_batch_size)
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[len(settings.labels)])
    config.output.add(name="truncated", data_type=pb.TYPE_BOOL, dims=[1])
    config.version_policy.specific.versions.append(version)
    names = model_names(settings.name, settings.kind)[1:]
    steps = [config.ensemble_scheduling.step.add(model_name=name, model_version=version) for name in names]
    steps[0].input_map["TEXT"] = "TEXT"
    steps[0].output_map["truncated"] = "truncated"
    if settings.kind == "transformer":
        steps[0].output_map["input_ids"] = "input_ids"
        steps[1].input_map["input_ids"] = "input_ids"
    steps[-1].output_map["scores"] = "scores"
    _set_parameters(config, _public_parameters(settings))
    if previous is not None:
        _set_parameters(config, {PREVIOUS: str(previous)})
    return config


def _public_parameters(settings: ServingSettings) -> dict[str, str]:
    return {
        "labels": json.dumps(settings.labels),
        "thresholds": json.dumps(settings.thresholds),
        "problem_type": settings.problem_type,
        "precision": settings.precision,
        "max_tokens": str(settings.max_tokens),
        "max_characters": str(settings.max_characters),
        "provenance": json.dumps(settings.provenance),
    }


def cascade_settings(
    settings: ServingSettings, encoder_version: int, stages: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """What stands in ``settings.json`` of a cascade's version, beside the files of ``CASCADE_FILES``.

    :param encoder_version: the version of the ensemble that gets what the stages are not sure of.
    :param stages: as ``stages.py`` of the version reads them; none makes a cache in front of the ensemble.
    """
    row_characters = settings.max_tokens * CHARACTERS_OF_A_TOKEN
    return {
        "labels": list(settings.labels),
        "max_characters": settings.max_characters,
        "normalize": settings.normalize,
        "encoder": {"model": settings.name, "version": encoder_version},
        "stages": list(stages),
        "cache_bytes": 64 * 2**20,  # about 100,000 comments
        "max_rows_in_flight": 16 * settings.max_batch_size,
        "encoder_calls": 2 * settings.instances,  # one that is scored and one that waits, for each instance
        "chunk_rows": min(settings.max_batch_size, 32),
        "chunk_characters": 8 * row_characters,
        "row_characters": row_characters,
    }


def cascade(settings: ServingSettings, version: int) -> str:
    """The text of ``config.pbtxt`` of ``<name>_cascade``.

    The parameters are those of the ensemble; the numbers of ``cascade_settings`` may be set as parameters too, and then
    hold for every version. The model's queue has no limit, since it takes requests as they come: what waits for the
    encoder waits inside it, and is limited by ``max_rows_in_flight`` and the requests' own ``timeout``.
    """
    config = pb.ModelConfig(name=f"{settings.name}_cascade", backend="python", max_batch_size=settings.max_batch_size)
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[len(settings.labels)])
    config.output.add(name="truncated", data_type=pb.TYPE_BOOL, dims=[1])
    config.output.add(name="stage", data_type=pb.TYPE_INT32, dims=[1])
    config.version_policy.specific.versions.append(version)
    # one instance: cache and comments under way are known to one process only
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    # no default_queue_policy: with one, whatever it says, Triton 2.51 lets a request that comes while others are
    # executed wait for 500 ms, where no further one wakes the batcher
    config.dynamic_batching.SetInParent()
    _set_parameters(config, _public_parameters(settings))
    return f"{HEADER}{text_format.MessageToString(config)}"


def tokenizer(settings: ServingSettings) -> pb.ModelConfig:
    name = model_names(settings.name)[1]
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=settings.max_batch_size)
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="input_ids", data_type=pb.TYPE_INT32, dims=[-1])
    config.output.add(name="truncated", data_type=pb.TYPE_BOOL, dims=[1])
    config.instance_group.add(count=settings.tokenizers, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.SetInParent()
    # not dynamic_batching's default_queue_policy: see templates/admission.py
    _set_parameters(config, {"max_queue_ms": str(settings.max_queue_ms)})
    return config


def encoder(settings: ServingSettings) -> pb.ModelConfig:
    """What scores: the ONNX graph, or for a linear model the Python that has its weights."""
    config = pb.ModelConfig(name=f"{settings.name}_encoder", max_batch_size=settings.max_batch_size)
    if settings.kind == "linear":
        config.backend = "python"
        config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
        config.output.add(name="truncated", data_type=pb.TYPE_BOOL, dims=[1])
        _set_parameters(config, {"max_queue_ms": str(settings.max_queue_ms)})
    else:
        config.backend = "onnxruntime"
        config.default_model_filename = "model.onnx"
        # requests of any lengths are joined, and the graph is told how long each row is: see export/ragged.py
        config.input.add(name="input_ids", data_type=pb.TYPE_INT32, dims=[-1], allow_ragged_batch=True)
        config.batch_input.add(
            kind=pb.BatchInput.BATCH_ITEM_SHAPE,
            target_name=[ragged.WIDTHS],
            data_type=pb.TYPE_INT32,
            source_input=["input_ids"],
        )
        parameters = {
            "enable_mem_pattern": 0,  # they are remembered by the shapes of the inputs, which seldom come twice
            "intra_op_thread_count": settings.intra_op_threads,
            "ragged_padding": ragged.PADDING,
        }
        if settings.max_batch_tokens:
            parameters["max_batch_tokens"] = settings.max_batch_tokens
        texts = {key: str(value) for key, value in parameters.items()}
        _set_parameters(config, {**texts, "score_labels": json.dumps(settings.labels)})  # for the metrics
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[len(settings.labels)])
    # KIND_AUTO: on the GPU where the machine has one, so that the same repository can be tried on one that has none
    kind = pb.ModelInstanceGroup.KIND_CPU if settings.target == "cpu" else pb.ModelInstanceGroup.KIND_AUTO
    config.instance_group.add(count=settings.instances, kind=kind)
    config.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    if settings.kind != "linear" and settings.target == "cpu" and settings.preferred_batch_size:
        config.dynamic_batching.preferred_batch_size.append(min(settings.preferred_batch_size, settings.max_batch_size))
    if settings.target == "tensorrt":
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters["precision_mode"] = {"int8": "INT8", "fp16": "FP16"}.get(settings.precision, "FP32")
        # engines are built for each padded length once, and kept: minutes at the first start, seconds later
        accelerator.parameters["trt_engine_cache_enable"] = "true"
    return config


def served_version(config_pbtxt: Path) -> tuple[int, int | None]:
    """The version that an ensemble's configuration serves, and the one before it.

    :raises InvalidSettings: for a configuration that the exporter did not write.
    """
    config = text_format.Parse(config_pbtxt.read_text(encoding="utf-8"), pb.ModelConfig())
    versions = list(config.version_policy.specific.versions)
    if len(versions) != 1:
        raise InvalidSettings(
            f"{config_pbtxt} serves no one version by number: it was not written by `python -m export.onnx`, or by an "
            "old one; export the model again"
        )
    before = config.parameters[PREVIOUS].string_value if PREVIOUS in config.parameters else ""
    return versions[0], int(before) if before else None


def loaded_versions(config_pbtxt: Path) -> tuple[int, ...]:
    """The versions of a model that its configuration lets a server load."""
    config = text_format.Parse(config_pbtxt.read_text(encoding="utf-8"), pb.ModelConfig())
    return tuple(config.version_policy.specific.versions)


def _set_parameters(config: pb.ModelConfig, parameters: dict[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value
