"""What Triton reads: the configuration of the three models, rendered from one set of settings.

A configuration is built as Triton's own protobuf message, so a misspelt field fails here and not at server start.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

TOKENIZER_TEMPLATE = Path(__file__).parent / "templates" / "tokenizer_model.py"
BUCKETS = (16, 32, 64, 128, 256, 512)
CHARACTERS_PER_TOKEN = 64
"""A text is cut to this many characters per token that the model reads, before it is tokenized: no flood of text in one
row holds up the rows beside it."""


class InvalidSettings(ValueError):
    """Serving settings that Triton or the model could not work with."""


@dataclass(frozen=True)
class ServingSettings:
    """All that the three configurations depend on.

    :param buckets: the padded lengths, ascending; the last is ``max_tokens``.
    :param instances: encoder sessions; each takes ``intra_op_threads`` threads.
    :param normalize: the tokenizer runs the version's ``normalizer.py`` first.
    :param provenance: strings that tell where the model came from.
    """

    name: str
    labels: tuple[str, ...]
    thresholds: dict[str, float]
    problem_type: str
    max_tokens: int
    pad_token_id: int
    precision: str
    provenance: dict[str, str]
    buckets: tuple[int, ...]
    max_batch_size: int = 64
    instances: int = 2
    intra_op_threads: int = 1
    normalize: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InvalidSettings(f"the model's name is {self.name!r}: use letters, digits and underscores")
        for field in ("max_batch_size", "instances", "intra_op_threads"):
            if getattr(self, field) < 1:
                raise InvalidSettings(f"{field} is {getattr(self, field)}, must be at least 1")
        if (
            list(self.buckets) != sorted(set(self.buckets))
            or self.buckets[0] < 2
            or self.buckets[-1] != self.max_tokens
        ):
            raise InvalidSettings(
                f"buckets are {self.buckets}: they must ascend from 2 or more to max_tokens, {self.max_tokens}"
            )

    @staticmethod
    def default_buckets(max_tokens: int) -> tuple[int, ...]:
        return (*(b for b in BUCKETS if b < max_tokens), max_tokens)


def render(settings: ServingSettings) -> dict[str, str]:
    """The text of ``config.pbtxt`` for each of the three models, by model name."""
    configs = (ensemble(settings), tokenizer(settings), encoder(settings))
    header = "# Rendered by `python -m export.onnx`; export again instead of editing.\n"
    return {c.name: header + text_format.MessageToString(c) for c in configs}


def model_names(name: str) -> tuple[str, str, str]:
    """The ensemble, its tokenizer and its encoder."""
    return name, f"{name}_tokenizer", f"{name}_encoder"


def ensemble(settings: ServingSettings) -> pb.ModelConfig:
    """What clients call. Its parameters tell them labels, thresholds and origin: nothing is configured twice."""
    name, tokenizer_name, encoder_name = model_names(settings.name)
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=settings.max_batch_size)
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[len(settings.labels)])
    config.output.add(name="truncated", data_type=pb.TYPE_BOOL, dims=[1])
    first = config.ensemble_scheduling.step.add(model_name=tokenizer_name, model_version=-1)
    first.input_map["TEXT"] = "TEXT"
    second = config.ensemble_scheduling.step.add(model_name=encoder_name, model_version=-1)
    for tensor in ("input_ids", "attention_mask"):
        first.output_map[tensor] = tensor
        second.input_map[tensor] = tensor
    first.output_map["truncated"] = "truncated"
    second.output_map["scores"] = "scores"
    parameters = {
        "labels": json.dumps(settings.labels),
        "thresholds": json.dumps(settings.thresholds),
        "problem_type": settings.problem_type,
        "precision": settings.precision,
        "max_tokens": str(settings.max_tokens),
        "max_characters": str(settings.max_tokens * CHARACTERS_PER_TOKEN),
        "provenance": json.dumps(settings.provenance),
    }
    _set_parameters(config, parameters)
    return config


def tokenizer(settings: ServingSettings) -> pb.ModelConfig:
    config = pb.ModelConfig(
        name=model_names(settings.name)[1], backend="python", max_batch_size=settings.max_batch_size
    )
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="input_ids", data_type=pb.TYPE_INT32, dims=[-1])
    config.output.add(name="attention_mask", data_type=pb.TYPE_INT32, dims=[-1])
    config.output.add(name="truncated", data_type=pb.TYPE_BOOL, dims=[1])
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.SetInParent()
    parameters = {
        "buckets": ",".join(map(str, settings.buckets)),
        "max_tokens": str(settings.max_tokens),
        "max_characters": str(settings.max_tokens * CHARACTERS_PER_TOKEN),
        "pad_token_id": str(settings.pad_token_id),
    }
    if settings.normalize:
        parameters["normalize"] = "true"
    _set_parameters(config, parameters)
    return config


def encoder(settings: ServingSettings) -> pb.ModelConfig:
    config = pb.ModelConfig(
        name=model_names(settings.name)[2], backend="onnxruntime", max_batch_size=settings.max_batch_size
    )
    config.default_model_filename = "model.onnx"
    for tensor in ("input_ids", "attention_mask"):
        config.input.add(name=tensor, data_type=pb.TYPE_INT32, dims=[-1])
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[len(settings.labels)])
    # FP16 is for GPUs: Triton puts it there when the machine has one. INT8 and FP32 stay on the CPU.
    kind = pb.ModelInstanceGroup.KIND_AUTO if settings.precision == "fp16" else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=settings.instances, kind=kind)
    config.dynamic_batching.SetInParent()
    _set_parameters(config, {"intra_op_thread_count": str(settings.intra_op_threads)})
    return config


def _set_parameters(config: pb.ModelConfig, parameters: dict[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value
