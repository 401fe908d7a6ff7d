"""What the gateway asks of a client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from client import AsyncToxicityClient, Batching, ModelInfo, Result


class Client(Protocol):
    """The part of :class:`client.AsyncToxicityClient` that is used here; ``score`` joins comments of many callers."""

    async def score(self, text: str, timeout: float | None = None) -> Result: ...

    async def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]: ...

    async def info(self, timeout: float | None = None) -> ModelInfo: ...

    def known(self, version: str) -> ModelInfo | None: ...

    async def close(self, grace: float = 5.0) -> None: ...


def connect(url: str, *, model: str, timeout: float) -> Client:
    # a request runs on one instance of the encoder: with larger ones the others would idle. Triton joins what waits
    batching = Batching(size=16, in_flight=32)
    return AsyncToxicityClient(url, model=model, timeout=timeout, batching=batching)
