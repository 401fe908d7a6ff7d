"""Triton model: texts to token ids, padded to a short ladder of lengths.

The data flow, and the error that belongs to each arrow::

    TEXT bytes --decode--> str --normalize--> str --tokenize--> ids --cut, pad--> input_ids, attention_mask, truncated
             INVALID_ARGUMENT: not UTF-8, with the row and the byte

Texts are normalized where the parameter ``normalize`` is true and the version's folder holds the ``normalizer.py`` that
its model was trained with; ``truncated`` then speaks of the normalized text.

Triton joins only requests of equal shape, first in first out. So rows are padded to the next length of the ladder
(parameter ``buckets``), never to their own.

Written by the exporter into every version folder: change ``export/templates/tokenizer_model.py`` instead.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread per instance; Triton starts the instances

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

NORMALIZED_SHARE = 4
"""A text is normalized up to so many times ``max_characters``: a disguise takes room, a flood gets no time."""


class TritonPythonModel:
    """What Triton's Python backend calls; one per instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.max_tokens = int(parameters["max_tokens"])
        self.max_characters = int(parameters["max_characters"])
        self.buckets = [int(b) for b in parameters["buckets"].split(",")]
        self.pad_id = int(parameters["pad_token_id"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.normalize = None
        if parameters.get("normalize") == "true":
            self.normalize = load_normalizer(folder / "normalizer.py", f"normalizer_{args['model_version']}")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # the special tokens behind a text, such as [SEP]: kept when the text is cut
        mask = self.tokenizer.encode("a").special_tokens_mask
        self.tail = mask[::-1].index(0)

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        texts: list[str] = []
        spans = []
        for i, request in enumerate(requests):
            rows = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            try:
                decoded = [self.decode(row, number) for number, row in enumerate(rows)]
            except ValueError as error:
                refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses[i] = pb_utils.InferenceResponse(error=refusal)
                continue
            spans.append((i, len(texts), len(texts) + len(decoded)))
            texts.extend(decoded)

        cut = [False] * len(texts)
        if self.normalize is not None:
            most = NORMALIZED_SHARE * self.max_characters
            cut = [len(text) > most for text in texts]
            texts = [self.normalize(text[:most]) for text in texts]

        # one call for all requests: most of a small call's time would be overhead
        encodings = self.tokenizer.encode_batch_fast([text[: self.max_characters] for text in texts])
        ids = [encoding.ids for encoding in encodings]
        for i, start, stop in spans:
            truncated = [
                was_cut or len(row) > self.max_tokens or len(text) > self.max_characters
                for row, text, was_cut in zip(ids[start:stop], texts[start:stop], cut[start:stop], strict=True)
            ]
            responses[i] = self.response([self.cut(row) for row in ids[start:stop]], truncated)
        return responses

    def decode(self, row: bytes, number: int) -> str:
        try:
            return row.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"TEXT row {number} is not valid UTF-8: byte 0x{row[error.start]:02x} at offset {error.start} of "
                f"{len(row)} ({error.reason}); send UTF-8"
            ) from None

    def cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_tokens:
            return ids
        return ids[: self.max_tokens - self.tail] + ids[len(ids) - self.tail :]

    def response(self, rows: list[list[int]], truncated: list[bool]) -> Any:
        longest = max((len(row) for row in rows), default=0)
        width = next(bucket for bucket in self.buckets if bucket >= longest)
        input_ids = np.full((len(rows), width), self.pad_id, np.int32)
        attention_mask = np.zeros((len(rows), width), np.int32)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = row
            attention_mask[i, : len(row)] = 1
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", input_ids),
                pb_utils.Tensor("attention_mask", attention_mask),
                pb_utils.Tensor("truncated", np.array(truncated, bool).reshape(-1, 1)),
            ]
        )


def load_normalizer(path: Path, name: str) -> Callable[[str], str] | None:
    """The version's own ``normalize_text``; ``None`` for a version that was trained without one."""
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    normalize: Callable[[str], str] = module.normalize_text
    return normalize
