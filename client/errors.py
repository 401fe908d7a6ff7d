"""What can go wrong between a list of texts and their results.

::

    texts ──▶ request ──▶ server ──▶ reply ──▶ results

    ToxicityError                                     gRPC status        belongs to
    ├── InvalidInput (also a ValueError)              INVALID_ARGUMENT   texts → request: found here, or by the server
    ├── ModelNotFound                                 NOT_FOUND          request → server: it has no such model
    ├── ServerUnavailable                             UNAVAILABLE        request → server: nobody answers
    │   ├── ServerBusy                                RESOURCE_EXHAUSTED request → server: refused, its queue is full
    │   └── Timeout                                   DEADLINE_EXCEEDED  server → reply: not within the time given
    └── InvalidReply                                  OK                 reply → results: not what the contract says

``ServerUnavailable`` and what is below it may pass: the same call can succeed later. The others will not. Any other
gRPC status is a plain ``ToxicityError``. Triton itself refuses with UNAVAILABLE; that it is busy is known by the text.
"""

from __future__ import annotations


class ToxicityError(Exception):
    """Any failure of this client.

    :ivar endpoint: the server's ``host:port``.
    :ivar model: the model that was asked for.
    :ivar request_id: what the server's log calls the request; ``None`` when none was sent.
    :ivar waited_s: seconds from the start of the call to the failure.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        model: str | None = None,
        request_id: str | None = None,
        waited_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.model = model
        self.request_id = request_id
        self.waited_s = waited_s


class InvalidInput(ToxicityError, ValueError):
    """The texts, or an argument beside them, cannot be sent, or the server refused them."""


class ModelNotFound(ToxicityError):
    """The server has no such model, or no version of it is loaded."""


class ServerUnavailable(ToxicityError):
    """The server cannot be reached, or cannot answer now."""


class ServerBusy(ServerUnavailable):
    """The server refused the request because too much waits already: more than it, or this call, has time for."""


class Timeout(ServerUnavailable):
    """The time given to the call ran out."""


class InvalidReply(ToxicityError):
    """The server answered, but not as a Tritox model does."""
