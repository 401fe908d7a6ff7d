"""Texts out of Triton's requests: decoded, normalized where the model was trained so, and cut to a length.

Stands beside the ``model.py`` that reads with it, in its version folder; Triton's Python backend puts that folder on
``sys.path``. Written there by the exporter: change ``export/templates/texts.py`` instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import triton_python_backend_utils as pb_utils

NORMALIZED_SHARE = 4
"""A text is normalized up to so many times the characters that are read: a disguise takes room, a flood no time."""


@dataclass
class Batch:
    """The texts of several requests.

    :ivar texts: of all requests, one behind the other.
    :ivar cut: whether a text was longer than what is read of it.
    :ivar spans: of each request that could be read: its number, and where its texts start and stop.
    :ivar responses: for each request, its refusal, or ``None`` to be filled in.
    """

    responses: list[Any]
    texts: list[str] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)


class TextReader:
    """:param max_characters: of a (normalized) text are read, the rest is cut off."""

    def __init__(self, max_characters: int, normalize: bool) -> None:
        self.max_characters = max_characters
        self.normalize: Callable[[list[str]], list[str]] | None = None
        if normalize:
            import normalizer  # the version folder's own: what ran in training

            many = getattr(normalizer, "normalize_texts", None)  # artifacts of before November 2026 have none
            self.normalize = many or (lambda texts: [normalizer.normalize_text(text) for text in texts])

    def read(self, requests: list[Any]) -> Batch:
        """The input ``TEXT`` of all requests. Text that is not UTF-8 refuses its own request alone."""
        batch = Batch([None] * len(requests))
        for i, request in enumerate(requests):
            rows = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            try:
                decoded = [decode(row, number) for number, row in enumerate(rows)]
            except ValueError as error:
                refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                batch.responses[i] = pb_utils.InferenceResponse(error=refusal)
                continue
            batch.spans.append((i, len(batch.texts), len(batch.texts) + len(decoded)))
            batch.texts.extend(decoded)
        batch.texts, batch.cut = self.prepare(batch.texts)
        return batch

    def prepare(self, texts: list[str]) -> tuple[list[str], list[bool]]:
        """What the model reads of each text, and whether there was more."""
        cut = [False] * len(texts)
        if self.normalize is not None:
            most = NORMALIZED_SHARE * self.max_characters
            cut = [len(text) > most for text in texts]
            texts = self.normalize([text[:most] for text in texts])
        cut = [more or len(text) > self.max_characters for more, text in zip(cut, texts, strict=True)]
        return [text[: self.max_characters] for text in texts], cut


def decode(row: bytes, number: int) -> str:
    """:raises ValueError: with the row and the byte that is not UTF-8."""
    try:
        return row.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"TEXT row {number} is not valid UTF-8: byte 0x{row[error.start]:02x} at offset {error.start} of "
            f"{len(row)} ({error.reason}); send UTF-8"
        ) from None
