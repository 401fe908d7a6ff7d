"""How a client behaves: small frozen values that it is given once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.errors import InvalidInput

DEFAULT_URL = "127.0.0.1:8001"
SCHEMES = ("http://", "https://", "grpc://", "grpcs://")


@dataclass(frozen=True, slots=True)
class Credentials:
    """How the client shows who it is, and knows who the server is. Secrets do not show in its ``repr``.

    :param tls: encrypt. ``False`` sends the token in the clear, which is for a mesh that encrypts by itself.
    :param ca: PEM file of the authority that signed the server's certificate; by default gRPC's own roots.
    :param certificate: PEM file of the client's certificate, for mutual TLS; with ``key``, the file of its private key.
    :param token: goes with every request as ``authorization: Bearer ...``; a function is asked before each request, so
        that tokens may change.
    :param metadata: other headers for every request; names in lower case.
    :param server_name: that the server's certificate must hold, where it is not the host in the URL.
    """

    tls: bool = True
    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = field(default=None, repr=False)
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("mutual TLS needs both certificate and key", remedy="give both, or neither")
        if not self.tls and (self.ca or self.certificate):
            raise InvalidInput("ca and certificate are for TLS, and tls is False", remedy="drop them, or leave tls on")
        for name in self.metadata:
            if name != name.lower():
                raise InvalidInput(f"the metadata name {name!r} must be in lower case", remedy=f"use {name.lower()!r}")

    @classmethod
    def from_environment(cls) -> Credentials | None:
        """Those that TRITOX_CA, TRITOX_CERTIFICATE, TRITOX_CERTIFICATE_KEY, TRITOX_TOKEN and TRITOX_SERVER_NAME name;
        ``None`` where neither an authority, nor a certificate, nor a token is there, nor ``TRITOX_TLS=1``.

        :raises InvalidInput: for a certificate without its key.
        """
        given = {
            name: os.environ.get(f"TRITOX_{name.upper()}") or None
            for name in ("ca", "certificate", "certificate_key", "token", "server_name")
        }
        if not (given["ca"] or given["certificate"] or given["token"] or os.environ.get("TRITOX_TLS") == "1"):
            return None
        return cls(
            ca=given["ca"],
            certificate=given["certificate"],
            key=given["certificate_key"],
            token=given["token"],
            server_name=given["server_name"],
        )

    def headers(self) -> list[tuple[str, str]] | None:
        """What goes with a request."""
        pairs = list(self.metadata.items())
        if self.token is not None:
            pairs.append(("authorization", f"Bearer {self.token() if callable(self.token) else self.token}"))
        return pairs or None

    def channel(self) -> Any:
        """``grpc.ChannelCredentials``, what gRPC encrypts with; ``None`` without TLS.

        :raises InvalidInput: when a file cannot be read.
        """
        if not self.tls:
            return None
        import grpc  # what is only told of needs none

        return grpc.ssl_channel_credentials(
            root_certificates=self.read(self.ca),
            private_key=self.read(self.key),
            certificate_chain=self.read(self.certificate),
        )

    def read(self, path: str | Path | None) -> bytes | None:
        """:raises InvalidInput: when the file cannot be read."""
        if path is None:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read ({error.strerror})", remedy="name a PEM file") from None


@dataclass(frozen=True, slots=True)
class Retry:
    """When a request is sent again. Scoring changes nothing on the server, so it is safe where it can help: when the
    server cannot be reached, is lost, or is busy. Never when it refused the texts, and never after the deadline.

    :param attempts: how often a request is sent at most; 1 never sends it again.
    :param base_s: the pause before the n-th retry is random between 0 and ``base_s * 2**n`` ("full jitter") ...
    :param cap_s: ... and at most this. A server that is lost while another one is up costs no pause.
    :param budget: retries for each request that was answered, so that a server in trouble is not buried: 0.2 adds at
        most 20% of requests. To go from a lost server to one that is up is free: that one would have got it anyway.
    :param reserve: retries that may come all at once; what the budget starts with and is never above.
    """

    attempts: int = 4
    base_s: float = 0.1
    cap_s: float = 2.0
    budget: float = 0.2
    reserve: float = 50.0

    def __post_init__(self) -> None:
        _at_least("attempts", self.attempts, 1)
        for name in ("base_s", "cap_s", "budget", "reserve"):
            _at_least(name, getattr(self, name), 0)


@dataclass(frozen=True, slots=True)
class Hedge:
    """Send a request once more, to another server where there is one, when its answer is late; the first answer counts.
    The other one is not cancelled.

    :param delay_s: how late; by default the 95th percentile of the client's own recent requests of about that size.
    :param budget: hedges for each request: 0.1 adds at most 10% of requests.
    """

    delay_s: float | None = None
    budget: float = 0.1

    def __post_init__(self) -> None:
        if self.delay_s is not None:
            _at_least("delay_s", self.delay_s, 0)
        _at_least("budget", self.budget, 0)


@dataclass(frozen=True, slots=True)
class Batching:
    """How ``score`` joins single comments of concurrent callers into requests.

    A comment that comes while nothing is under way is sent at once. While something is, it waits for company: until
    one of the limits is reached, or for ``delay_ms``.

    :param size: comments in a request.
    :param tokens: in a request, by estimate: four bytes each, at most the model's ``max_tokens`` a comment.
    :param bytes: of text in a request.
    :param delay_ms: longest wait for company.
    :param in_flight: requests under way at once; beyond that, comments wait however long it takes, and are joined.
    """

    size: int = 32
    tokens: int = 8192
    bytes: int = 1 << 20
    delay_ms: float = 2.0
    in_flight: int = 8

    def __post_init__(self) -> None:
        for name in ("size", "tokens", "bytes", "in_flight"):
            _at_least(name, getattr(self, name), 1)
        _at_least("delay_ms", self.delay_ms, 0)


def endpoints(url: str | Sequence[str] | None) -> tuple[str, ...]:
    """The servers' ``host:port``, from a list, a string with commas, or the environment's ``TRITOX_URL``.

    :raises InvalidInput: when one is a web address, or there is none.
    """
    given = url or os.environ.get("TRITOX_URL") or DEFAULT_URL
    parts = given.split(",") if isinstance(given, str) else list(given)
    if not all(isinstance(part, str) for part in parts):
        raise InvalidInput(f"the url is {url!r}, must be host:port or a list of them", remedy="give strings")
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for part in found:
        if part.startswith(SCHEMES):
            raise InvalidInput(
                f"the url is {part!r}, must be host:port of the server's gRPC port, such as {DEFAULT_URL}",
                endpoint=part,
                remedy="leave the scheme out; TLS is asked for by credentials=Credentials(...)",
            )
    if not found:
        raise InvalidInput(
            f"the url is {url!r}, which names no server", remedy=f"give host:port, such as {DEFAULT_URL}"
        )
    return found


def _at_least(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise InvalidInput(f"{name} is {value!r}, must be a number of at least {least:g}", remedy="change it")
