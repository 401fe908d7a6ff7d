"""What the gateway asks of a client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from client import ModelInfo, Result, ToxicityClient


class Client(Protocol):
    """The part of ``client.AsyncToxicityClient`` that is used here."""

    async def score(self, text: str) -> Result: ...

    async def classify(self, texts: Sequence[str]) -> list[Result]: ...

    async def info(self) -> ModelInfo: ...

    async def close(self) -> None: ...


class Threaded:
    """The blocking client, in threads."""

    def __init__(self, url: str, *, model: str, timeout: float) -> None:
        self._client = ToxicityClient(url, model=model, timeout=timeout)

    async def score(self, text: str) -> Result:
        return (await self.classify([text]))[0]

    async def classify(self, texts: Sequence[str]) -> list[Result]:
        return await asyncio.to_thread(self._client.classify, texts)

    async def info(self) -> ModelInfo:
        return await asyncio.to_thread(self._client.info)

    async def close(self) -> None:
        self._client.close()
