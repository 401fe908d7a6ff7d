"""Score comments on a Triton server: ``ToxicityClient(url).classify(texts)``.

>>> from client import ToxicityClient
>>> with ToxicityClient("127.0.0.1:8001") as client:                    # doctest: +SKIP
...     for result in client.classify(["What a lovely day", "You are an idiot"]):
...         print(result.flagged)
()
('toxic', 'insult')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.errors import (
    InvalidInput,
    InvalidReply,
    ModelNotFound,
    ServerBusy,
    ServerUnavailable,
    Timeout,
    ToxicityError,
)
from client.results import ModelInfo, Result

if TYPE_CHECKING:
    from client.sync import ToxicityClient

__all__ = [
    "InvalidInput",
    "InvalidReply",
    "ModelInfo",
    "ModelNotFound",
    "Result",
    "ServerBusy",
    "ServerUnavailable",
    "Timeout",
    "ToxicityClient",
    "ToxicityError",
]


def __getattr__(name: str) -> Any:
    # gRPC and numpy load with the client itself, so that errors and results cost nothing to import
    if name == "ToxicityClient":
        try:
            from client.sync import ToxicityClient
        except (ModuleNotFoundError, RuntimeError) as error:  # RuntimeError: tritonclient without its grpc extra
            missing = getattr(error, "name", None) or "tritonclient[grpc]"
            message = f"the client needs the package {missing}: pip install -e '.[client]' -c constraints.txt"
            raise ModuleNotFoundError(message, name=missing) from error
        return ToxicityClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
