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
        self.normalize: Callable[[str], str] | None = None
        if normalize:
            from normalizer import normalize_text  # the version folder's own: what ran in training

            self.normalize = normalize_text

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
        prepared = [self.prepare(text) for text in batch.texts]
        batch.texts, batch.cut = [text for text, _ in prepared], [cut for _, cut in prepared]
        return batch

    def prepare(self, text: str) -> tuple[str, bool]:
        """What the model reads of a text, and whether there was more."""
        cut = False
        if self.normalize is not None:
            most = NORMALIZED_SHARE * self.max_characters
            cut = len(text) > most
            text = self.normalize(text[:most])
        return text[: self.max_characters], cut or len(text) > self.max_characters


def decode(row: bytes, number: int) -> str:
    """:raises ValueError: with the row and the byte that is not UTF-8."""
    try:
        return row.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"TEXT row {number} is not valid UTF-8: byte 0x{row[error.start]:02x} at offset {error.start} of "
            f"{len(row)} ({error.reason}); send UTF-8"
        ) from None
