"""Triton model: texts to token ids, padded to a short ladder of lengths.

The data flow, and the error that belongs to each arrow::

    TEXT bytes --decode--> str --normalize--> str --tokenize--> ids --cut, pad--> input_ids, attention_mask, truncated
             INVALID_ARGUMENT: not UTF-8, with the row and the byte

Texts are normalized where the model was trained so; ``truncated`` then speaks of the normalized text. What differs
between versions is read from the version's folder (``settings.json``), since a config is shared by all versions. When
it loads, the model tokenizes the comments of ``golden.json`` and refuses to serve if their token ids have changed.

Triton joins only requests of equal shape, first in first out. So rows are padded to the next length of the ladder
(``buckets``), never to their own.

Written by the exporter into every version folder: change ``export/templates/tokenizer_model.py`` instead.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread per instance; Triton starts the instances

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import Admission, tokens_of
from texts import TextReader
from tokenizers import Tokenizer


class TritonPythonModel:
    """What Triton's Python backend calls; one per instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.max_tokens: int = settings["max_tokens"]
        self.buckets: list[int] = settings["buckets"]
        self.pad_id: int = settings["pad_token_id"]
        self.reader = TextReader(settings["max_characters"], settings["normalize"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # the special tokens behind a text, such as [SEP]: kept when the text is cut
        mask = self.tokenizer.encode("a").special_tokens_mask
        self.tail = mask[::-1].index(0)
        self.check(json.loads((folder / "golden.json").read_text(encoding="utf-8")))
        config = json.loads(args["model_config"])
        self.admission = Admission(config, behind=config["name"].removesuffix("tokenizer") + "encoder")

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
        """Answers, or refusals where too much waits already."""
        refusals = self.admission.refusals([request.timeout() for request in requests])
        passed = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        answers = self.answer(passed) if passed else []
        self.admission.admitted(tokens_of(answers))
        rest = iter(answers)
        return [next(rest) if refusal is None else refused(refusal) for refusal in refusals]

    def answer(self, requests: list[Any]) -> list[Any]:
        batch = self.reader.read(requests)
        responses: list[Any] = batch.responses
        # one call for all requests: most of a small call's time would be overhead
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(batch.texts)]
        for i, start, stop in batch.spans:
            truncated = [
                cut or len(row) > self.max_tokens
                for row, cut in zip(ids[start:stop], batch.cut[start:stop], strict=True)
            ]
            responses[i] = self.response([self.cut(row) for row in ids[start:stop]], truncated)
        return responses

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


def refused(reason: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.UNAVAILABLE))
