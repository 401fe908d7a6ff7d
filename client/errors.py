"""What can go wrong between a list of texts and their results.

::

    texts ──▶ request ──▶ server ──▶ reply ──▶ results

    ToxicityError                                     gRPC status        belongs to
    ├── InvalidInput (also a ValueError)              INVALID_ARGUMENT   texts → request: found here, or by the server
    ├── ClientClosed                                  CANCELLED          texts → request: after ``close()``
    ├── AccessDenied                                  UNAUTHENTICATED,   request → server: no, or a wrong, token or
    │                                                 PERMISSION_DENIED                    certificate
    ├── ModelNotFound                                 NOT_FOUND          request → server: it has no such model
    ├── ServerUnavailable                             UNAVAILABLE        request → server: nobody answers
    │   ├── ServerBusy                                RESOURCE_EXHAUSTED request → server: refused, its queue is full
    │   └── Timeout                                   DEADLINE_EXCEEDED  server → reply: not within the time given
    └── InvalidReply                                  OK                 reply → results: not what the contract says

``ServerUnavailable`` and what is below it may pass: the same call can succeed later. The client has then tried again
already, as far as its ``Retry`` allows. The others will not pass. Any other gRPC status is a plain ``ToxicityError``.
Triton itself refuses with UNAVAILABLE; that it is busy is known by the text.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound="ToxicityError")


class ToxicityError(Exception):
    """Any failure of this client.

    :ivar endpoint: the server's ``host:port``; all of them, with commas, when none of several answered.
    :ivar model: the model that was asked for.
    :ivar request_id: what the server's log calls the request; ``None`` when none was sent.
    :ivar waited_s: seconds from the start of the call to the failure.
    :ivar tries: how often the request was sent.
    :ivar remedy: what to do about it; the message ends with it.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        model: str | None = None,
        request_id: str | None = None,
        waited_s: float = 0.0,
        tries: int = 0,
        remedy: str = "",
    ) -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.endpoint = endpoint
        self.model = model
        self.request_id = request_id
        self.waited_s = waited_s
        self.tries = tries
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.args, self.__dict__)

    def for_caller(self: E, waited_s: float) -> E:
        """A copy for one of several callers who shared a request: each raises an error of its own."""
        return _restore(type(self), self.args, {**self.__dict__, "waited_s": waited_s})


def _restore(kind: type[E], arguments: tuple[object, ...], values: dict[str, object]) -> E:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(values)
    return error


class InvalidInput(ToxicityError, ValueError):
    """The texts, or an argument beside them, cannot be sent, or the server refused them."""


class ClientClosed(ToxicityError):
    """The client was closed before, or while, the call was made."""


class AccessDenied(ToxicityError):
    """The server wants credentials that the client did not give, or refused those that it gave."""


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
