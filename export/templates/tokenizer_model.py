"""Triton model: texts to token ids.

The data flow, and the error that belongs to each arrow::

    TEXT bytes --decode--> str --normalize--> str --tokenize--> ids --cut, pad--> input_ids, truncated
             INVALID_ARGUMENT: not UTF-8, with the row and the byte

Texts are normalized where the model was trained so; ``truncated`` then speaks of the normalized text. What differs
between versions is read from the version's folder (``settings.json``), since a config is shared by all versions. When
it loads, the model tokenizes the comments of ``golden.json`` and refuses to serve if their token ids have changed.

Rows are padded with -1 to the longest of their request. Requests need no common length: the encoder takes ragged
batches.

Written by the exporter into every version folder: change ``export/templates/tokenizer_model.py`` instead.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread per instance; Triton starts the instances

import numpy as np
import triton_python_backend_utils as pb_utils
from texts import TextReader
from tokenizers import Tokenizer

PADDING = -1


class TritonPythonModel:
    """What Triton's Python backend calls; one per instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.max_tokens: int = settings["max_tokens"]
        self.reader = TextReader(settings["max_characters"], settings["normalize"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # the special tokens behind a text, such as [SEP]: kept when the text is cut
        mask = self.tokenizer.encode("a").special_tokens_mask
        self.tail = mask[::-1].index(0)
        self.check(json.loads((folder / "golden.json").read_text(encoding="utf-8")))

    def check(self, golden: dict[str, Any]) -> None:
        """:raises TritonModelException: when a golden comment's token ids are not those of the export."""
        for text, expected in zip(golden["texts"], golden["input_ids"], strict=True):
            prepared, _ = self.reader.prepare(text)
            found = self.cut(self.tokenizer.encode(prepared).ids)
            if found != expected:
                pairs = enumerate(zip(found, expected, strict=False))
                at = next((i for i, (one, other) in pairs if one != other), min(len(found), len(expected)))
                raise pb_utils.TritonModelException(
                    f"self-test failed: the golden comment {text[:40]!r} has other token ids than at its export, from "
                    f"position {at} on ({found[at : at + 3]}, expected {expected[at : at + 3]}): tokenizer.json or "
                    "normalizer.py is not this version's; restore the files, or export again"
                )

    def execute(self, requests: list[Any]) -> list[Any]:
        batch = self.reader.read(requests)
        responses: list[Any] = batch.responses
        # one call for all requests: most of a small call's time would be overhead
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(batch.texts)]
        for i, start, stop in batch.spans:
            responses[i] = self.response(rows[start:stop], batch.cut[start:stop])
        return responses

    def cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_tokens:
            return ids
        return ids[: self.max_tokens - self.tail] + ids[len(ids) - self.tail :]

    def response(self, rows: list[list[int]], cut: list[bool]) -> Any:
        """:param cut: whether the text was cut before it was tokenized."""
        lengths = [len(row) for row in rows]
        longest = max(lengths, default=0)
        truncated = np.array(cut, bool).reshape(-1, 1)
        if longest > self.max_tokens:
            truncated |= np.array(lengths).reshape(-1, 1) > self.max_tokens
            rows = [self.cut(row) for row in rows]
            longest = self.max_tokens
        input_ids = np.array([row + [PADDING] * (longest - len(row)) for row in rows], np.int32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("input_ids", input_ids), pb_utils.Tensor("truncated", truncated)]
        )
