"""The models of the server behind: which there are, which one answers, and how another one takes over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from client import InvalidReply, ModelInfo, ModelNotFound, ServerUnavailable, ToxicityError
from serve.gateway import errors
from serve.gateway.backend import Client, connect
from serve.gateway.control import Control
from serve.gateway.messages import Model

LOAD_S = 120.0
"""How long Triton may take to load a model."""

PROBE_S = 2.0


@dataclass
class Served:
    """A model with a client of its own, and the requests that it is working on."""

    name: str
    client: Client
    under_way: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()


class Models:
    """:param url: ``host:port`` of Triton's gRPC port, or of a load balancer.
    :param active: the model that answers where none is named. :param timeout: seconds that a request may take.
    :param control: see :class:`serve.gateway.control.Control`; by default ``url``. :param control_key: of the servers.
    """

    def __init__(
        self,
        url: str,
        active: str = "toxicity",
        timeout: float = 5.0,
        make: Callable[..., Client] = connect,
        control: str | None = None,
        control_key: str | None = None,
    ) -> None:
        self.url, self.active, self.timeout = url, active, timeout
        self._make = make
        self._served: dict[str, Served] = {}
        self._switching = asyncio.Lock()
        self._open_to: dict[str, asyncio.Event] = {}  # models that are being loaded anew: whoever asks waits
        self._front = Control(url)
        self._replicas = Control(control or url, control_key, every_address=control is not None)

    async def close(self) -> None:
        for served in self._served.values():
            await served.client.close()
        self._served.clear()
        await self._front.close()
        await self._replicas.close()

    @contextlib.asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Client]:
        """The client of a model, for one request; by default of the active one.

        :raises ApiError: 404 where there is no such model.
        """
        while closed := self._open_to.get(name or self.active):
            await closed.wait()
        served = self._served.get(name or self.active) or await self._open(name or self.active)
        served.under_way += 1
        served.idle.clear()
        try:
            yield served.client
        finally:
            served.under_way -= 1
            if not served.under_way:
                served.idle.set()

    async def _open(self, name: str) -> Served:
        if name != self.active and name not in {index.name for index in await self._index()}:
            raise errors.ApiError(404, "NOT_FOUND", f"There is no model {name[:100]!r}: see GET /models.")
        client = self._make(self.url, model=name, timeout=self.timeout)
        try:
            if name != self.active:
                await client.info()  # a part of a model, such as its tokenizer, is none
        except (InvalidReply, ModelNotFound):
            await client.close()
            raise errors.ApiError(404, "NOT_FOUND", f"{name[:100]!r} does not score texts: see GET /models.") from None
        except BaseException:
            await client.close()
            raise
        if name in self._served:  # another request was faster
            await client.close()
            return self._served[name]
        served = self._served[name] = Served(name, client)
        return served

    async def ready(self) -> bool:
        """Whether the active model can answer."""
        try:
            # waits for the connection, which is not tried at every moment: a server that came back is not called dead
            replies = await self._front.ask("ModelReady", pb.ModelReadyRequest(name=self.active), PROBE_S, wait=True)
        except grpc.RpcError:
            return False
        return all(reply.ready for reply in replies)

    async def listing(self) -> list[Model]:
        """The models that score texts; of those that are not loaded only the name is known."""
        found = []
        parts: set[str] = set()
        index = await self._index()
        ready = {each.name for each in index if each.state == "READY"}
        infos: dict[str, ModelInfo] = {}
        for name in sorted(ready):
            try:
                async with self.use(name) as client:
                    infos[name] = await client.info()
            except errors.ApiError:
                parts.add(name)
        for name in sorted({each.name for each in index}):
            if name in parts or (name not in ready and name.endswith(("_tokenizer", "_encoder"))):
                continue
            info = infos.get(name)
            model = Model(name=name, active=name == self.active, ready=name in ready)
            if info is not None:
                model.version, model.labels, model.thresholds = info.version, list(info.labels), dict(info.thresholds)
                model.max_tokens, model.precision = info.max_tokens, info.precision
            found.append(model)
        return found

    async def switch(self, name: str, unload: bool = False, reload: bool = False) -> tuple[ModelInfo, str]:
        """Load a model where it is not, and let it answer from now on. Requests under way end where they began.

        :param unload: take the former model out of Triton's memory, once nobody waits for it.
        :param reload: load the model even where it is, for a version that was published since. Requests to it wait
            meanwhile.
        :returns: what the model says of itself, and the name of the former one.
        :raises ApiError: 404 where there is no such model; 409 where it cannot be loaded, or another switch is under
            way. The former model goes on answering then; where a model's new version on disk cannot be loaded, it has
            none at the replica that was asked first, and the others go on with the former one.
        """
        if self._switching.locked():
            raise errors.ApiError(409, "FAILED_PRECONDITION", "Another switch is under way: try again later.")
        async with self._switching:
            states = {each.name: each.state for each in await self._index()}
            if name not in states:
                raise errors.ApiError(404, "NOT_FOUND", f"There is no model {name[:100]!r}: see GET /models.")
            if states[name] != "READY" or reload:
                async with self._held_back(name):
                    await self._control("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name))
            async with self.use(name) as client:
                info = await client.info()
                await client.classify(["hello"])  # that it answers is seen before it must
            previous, self.active = self.active, name
            if unload and previous != name:
                if old := self._served.pop(previous, None):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(old.idle.wait(), self.timeout)
                    await old.client.close()
                await self._control("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=previous))
            return info, previous

    @contextlib.asynccontextmanager
    async def _held_back(self, name: str) -> AsyncIterator[None]:
        """Let no request to a model begin, once those under way have ended. Its client is a new one afterwards, which
        knows nothing of the version before.
        """
        opened = self._open_to[name] = asyncio.Event()
        try:
            if old := self._served.get(name):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(old.idle.wait(), self.timeout)
            yield
            if old := self._served.pop(name, None):
                await old.client.close()
        finally:
            del self._open_to[name]
            opened.set()

    async def _control(self, method: str, request: Any) -> None:
        try:
            # what one replica refuses, a damaged file say, need not cost the others the version that they have
            await self._replicas.ask(method, request, LOAD_S, first_alone=method == "RepositoryModelLoad")
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                if "not allowed" not in (error.details() or ""):
                    raise _failed(error) from None
            reason = " ".join((error.details() or error.code().name).split())[:500]
            hint = ": start it with `python -m serve --model-control`" if "not allowed" in reason else ""
            raise errors.ApiError(
                409, "FAILED_PRECONDITION", f"Triton refused to change {request.model_name!r} ({reason}){hint}"
            ) from None

    async def _index(self) -> list[Any]:
        try:
            return await self._replicas.index(self.timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and "restricted" in (error.details() or ""):
                raise errors.ApiError(
                    409,
                    "FAILED_PRECONDITION",
                    "Triton wants a key for this: give the gateway the server's in TRITOX_CONTROL_KEY.",
                ) from None
            raise _failed(error) from None


def _failed(error: grpc.RpcError) -> ToxicityError:
    return ServerUnavailable(f"the server does not answer ({error.code().name})")


def milliseconds(since: float) -> float:
    return round((time.perf_counter() - since) * 1000, 3)
