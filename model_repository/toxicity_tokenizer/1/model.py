"""Triton model: texts to token ids.

The data flow, and the error that belongs to each arrow::

    TEXT bytes --decode--> str --normalize--> str --tokenize--> ids --cut, pad--> input_ids, truncated
             INVALID_ARGUMENT: not UTF-8, with the row and the byte

Texts are normalized where the model was trained so; ``truncated`` then speaks of the normalized text. What differs
between versions is read from the version's folder (``settings.json``), since a config is shared by all versions. When
it loads, the model tokenizes the comments of ``golden.json`` and refuses to serve if their token ids have changed.

``fast_tokenizer.py`` does the work with a faster library where that gives the same ids. Rows are padded with -1 to the
longest of their request. Requests need no common length: the encoder takes ragged batches.

Written by the exporter into every version folder: change ``export/templates/tokenizer_model.py`` instead.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread per instance; Triton starts the instances

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import Admission
from counters import Counters, Histogram
from fast_tokenizer import FastTokenizer, pad
from texts import TextReader

LENGTH_BOUNDS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)


class TritonPythonModel:
    """What Triton's Python backend calls; one per instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        config = json.loads(args["model_config"])
        self.max_tokens: int = settings["max_tokens"]
        self.reader = TextReader(settings["max_characters"], settings["normalize"])
        prepared, _ = self.reader.prepare(golden["texts"])
        self.tokenizer = FastTokenizer(folder / "tokenizer.json", prepared)
        self.check(golden["texts"], prepared, golden["input_ids"])
        self.admission = Admission(config, behind=config["name"].removesuffix("tokenizer") + "encoder")
        labels = {"model": args["model_name"], "version": args["model_version"]}
        text = "Tokens of comments, also those that the encoder does not read"
        self.lengths = Histogram("tritox_tokenizer_length", text, LENGTH_BOUNDS, labels)
        self.counters = Counters(
            {
                "tritox_tokenizer_comments_total": "Comments that were tokenized",
                "tritox_tokenizer_tokens_total": "Their tokens, as far as the encoder reads them",
                "tritox_tokenizer_truncated_total": "Comments that are longer than what the encoder reads",
                "tritox_tokenizer_refused_total": "Requests that were refused, as too many wait",
            },
            labels,
            [self.lengths],
        )

    def finalize(self) -> None:
        self.counters.stop()

    def check(self, texts: list[str], prepared: list[str], golden: list[list[int]]) -> None:
        """:raises TritonModelException: when a golden comment's token ids are not those of the export."""
        table, _ = pad(*self.tokenizer.encode_batch(prepared), self.max_tokens, self.tokenizer.tail)
        for text, row, expected in zip(texts, table, golden, strict=True):
            found = row[row >= 0].tolist()
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
        rest = iter(self.answer(passed) if passed else [])
        if len(passed) < len(requests):
            self.counters.add(tritox_tokenizer_refused_total=len(requests) - len(passed))
        return [next(rest) if refusal is None else refused(refusal) for refusal in refusals]

    def answer(self, requests: list[Any]) -> list[Any]:
        batch = self.reader.read(requests)
        responses: list[Any] = batch.responses
        # one call for all requests: most of a small call's time would be overhead
        ids, lengths = self.tokenizer.encode_batch(batch.texts)
        table, truncated = pad(ids, lengths, self.max_tokens, self.tokenizer.tail)
        truncated |= np.array(batch.cut, bool)
        kept = np.minimum(lengths, self.max_tokens)
        for i, start, stop in batch.spans:
            width = kept[start] if stop == start + 1 else kept[start:stop].max(initial=0)
            tensors = [
                pb_utils.Tensor("input_ids", np.ascontiguousarray(table[start:stop, :width])),
                pb_utils.Tensor("truncated", truncated[start:stop, None]),
            ]
            responses[i] = pb_utils.InferenceResponse(tensors)
        tokens = np.concatenate([[0], np.cumsum(kept)])
        self.admission.admitted([int(tokens[stop] - tokens[start]) for _, start, stop in batch.spans])
        self.counters.add(
            tritox_tokenizer_comments_total=len(lengths),
            tritox_tokenizer_tokens_total=int(tokens[-1]),
            tritox_tokenizer_truncated_total=int(truncated.sum()),
        )
        self.lengths.observe(lengths)
        return responses


def refused(reason: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.UNAVAILABLE))
