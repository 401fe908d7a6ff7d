"""Models are listed, loaded and unloaded on every replica: what a load balancer, which picks one of them, cannot do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from client.options import Credentials, endpoints
from serve.server import GRPC_CONTROL_HEADER


class Control:
    """The replicas' own gRPC ports.

    :param url: ``host:port``, several between commas.
    :param key: the control key of the servers.
    :param every_address: a host name stands for each of its addresses, as those of the containers of one service. They
        are looked up anew for each question, so that replicas may come and go.
    :param credentials: by default those of the environment.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        credentials: Credentials | None = None,
        *,
        every_address: bool = False,
    ) -> None:
        self.targets, self.every_address = endpoints(url), every_address
        self.credentials = credentials or Credentials.from_environment()
        self.metadata = [(GRPC_CONTROL_HEADER, key)] if key else []
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def ask(
        self, method: str, request: Any, timeout: float, wait: bool = False, first_alone: bool = False
    ) -> list[Any]:
        """The answer of every replica.

        :param wait: for a connection, as long as there is time.
        :param first_alone: ask one replica, and the others only when it did not fail.
        :raises grpc.RpcError: of the first that failed; the others were asked, too.
        """
        calls = []
        places = await self._addresses(timeout) if self.every_address else [(t, t) for t in self.targets]
        for name, address in places:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel(name, address))
            send = getattr(stub, method)
            metadata = [*self.metadata, *((self.credentials and self.credentials.headers()) or [])]
            calls.append(partial(send, request, timeout=timeout, wait_for_ready=wait, metadata=metadata or None))

        async def answer(call: Any) -> Any:
            return await call()

        first = [await answer(calls.pop(0))] if first_alone else []
        answers = [*first, *await asyncio.gather(*map(answer, calls), return_exceptions=True)]
        for each in answers:
            if isinstance(each, BaseException):
                raise each
        return list(answers)

    async def index(self, timeout: float) -> list[Any]:
        """The models, as Triton lists them; one is ready where it is so on every replica.

        :raises grpc.RpcError: when a replica does not answer.
        """
        replies = await self.ask("RepositoryIndex", pb.RepositoryIndexRequest(), timeout)
        found: dict[tuple[str, str], Any] = {}
        for reply in replies:
            for model in reply.models:
                known = found.setdefault((model.name, model.version), model)
                if model.state != "READY":
                    known.state = model.state
        for (name, version), model in found.items():
            if any((name, version) not in {(m.name, m.version) for m in reply.models} for reply in replies):
                model.state = "UNAVAILABLE"
        return list(found.values())

    async def _addresses(self, timeout: float) -> Sequence[tuple[str, str]]:
        """The targets, each with the addresses that its name has now."""
        found: list[tuple[str, str]] = []
        for target in self.targets:
            host, _, port = target.rpartition(":")
            try:
                known = await asyncio.wait_for(
                    asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM), timeout
                )
            except (OSError, TimeoutError, UnicodeError):
                found.append((target, target))  # gRPC says what is wrong with it
                continue
            # where a name has addresses of both kinds, they are the same servers
            kinds = {family for family, *_ in known}
            for family, *_, address in known:
                if (socket.AF_INET in kinds and family != socket.AF_INET) or not isinstance(address[0], str):
                    continue
                shown = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
                found.append((target, f"{shown}:{address[1]}"))
        for gone in set(self._channels) - set(found):
            await self._channels.pop(gone).close()
        return list(dict.fromkeys(found))

    def _channel(self, target: str, address: str) -> grpc.aio.Channel:
        if (target, address) not in self._channels:
            options: list[tuple[str, Any]] = [("grpc.max_reconnect_backoff_ms", 1000)]
            secure = None if self.credentials is None else self.credentials.channel()
            if secure is None:
                channel = grpc.aio.insecure_channel(address, options=options)
            else:
                # the certificate holds the name, not the address
                name = (self.credentials and self.credentials.server_name) or target.rpartition(":")[0].strip("[]")
                if name != address.rpartition(":")[0].strip("[]"):
                    options.append(("grpc.ssl_target_name_override", name))
                channel = grpc.aio.secure_channel(address, secure, options=options)
            self._channels[target, address] = channel
        return self._channels[target, address]
