"""Score comments on a Triton server: ``ToxicityClient(url).classify(texts)``.

>>> from client import ToxicityClient
>>> with ToxicityClient("127.0.0.1:8001") as client:                    # doctest: +SKIP
...     for result in client.classify(["What a lovely day", "You are an idiot"]):
...         print(result.flagged)
()
('toxic', 'insult')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from client.errors import (
    AccessDenied,
    ClientClosed,
    InvalidInput,
    InvalidReply,
    ModelNotFound,
    ServerBusy,
    ServerUnavailable,
    Timeout,
    ToxicityError,
)
from client.options import Batching, Credentials, Hedge, Retry
from client.results import ModelInfo, Result, Timing

if TYPE_CHECKING:
    from client.aio import AsyncToxicityClient
    from client.sync import ToxicityClient

__all__ = [
    "AccessDenied",
    "AsyncToxicityClient",
    "Batching",
    "ClientClosed",
    "Credentials",
    "Hedge",
    "InvalidInput",
    "InvalidReply",
    "ModelInfo",
    "ModelNotFound",
    "Result",
    "Retry",
    "ServerBusy",
    "ServerUnavailable",
    "Timeout",
    "Timing",
    "ToxicityClient",
    "ToxicityError",
]


def __getattr__(name: str) -> Any:
    # gRPC and numpy load with the clients themselves, so that errors and results cost nothing to import
    if name in ("ToxicityClient", "AsyncToxicityClient"):
        try:
            module = importlib.import_module("client.sync" if name == "ToxicityClient" else "client.aio")
        except (ModuleNotFoundError, RuntimeError) as error:  # RuntimeError: tritonclient without its grpc extra
            missing = getattr(error, "name", None) or "tritonclient[grpc]"
            message = f"the client needs the package {missing}: pip install -e '.[client]' -c constraints.txt"
            raise ModuleNotFoundError(message, name=missing) from error
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
