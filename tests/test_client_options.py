"""What a client is given once: addresses, credentials over real TLS, compression, and values that are refused."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_client_sync import Stub, stub  # noqa: F401  (a fixture)
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from client import (
    AccessDenied,
    AsyncToxicityClient,
    Batching,
    Credentials,
    Hedge,
    InvalidInput,
    Retry,
    ServerUnavailable,
    ToxicityClient,
)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("a:1", "a:1"),
        ("a:1, b:2,", "a:1,b:2"),
        (["a:1", "b:2", "a:1"], "a:1,b:2"),
        (("a:1",), "a:1"),
        ("dns:///triton.default:8001", "dns:///triton.default:8001"),
    ],
)
def test_addresses(url: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ToxicityClient(url) as client:
        assert client.url == found
        with ToxicityClient(client.url) as again:  # what one says, another takes
            assert again.url == found
    monkeypatch.setenv("TRITOX_URL", found)
    with ToxicityClient() as client:
        assert client.url == found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ToxicityClient(["a:1", "http://b:2"]),
            "the url is 'http://b:2', must be host:port .*: leave the scheme",
        ),
        (lambda: ToxicityClient(" , "), "names no server: give host:port"),
        (lambda: ToxicityClient([1]), "give strings"),  # type: ignore[list-item]
        (lambda: ToxicityClient(compression="zip"), "compression is 'zip', must be gzip, deflate or None"),  # type: ignore[arg-type]
        (lambda: ToxicityClient(connections=0), "connections is 0, must be at least 1"),
        (lambda: AsyncToxicityClient(in_flight=-1), "in_flight is -1, must be at least 1"),
        (lambda: ToxicityClient(stall_s=-1), "stall_s is -1, must be at least 0"),
        (lambda: Retry(attempts=0), "attempts is 0, must be a number of at least 1"),
        (lambda: Retry(base_s=-1), "base_s is -1"),
        (lambda: Hedge(delay_s=-1), "delay_s is -1"),
        (lambda: Hedge(budget=float("nan")), "budget is nan"),
        (lambda: Batching(size=0), "size is 0, must be a number of at least 1"),
        (lambda: Batching(delay_ms=-1), "delay_ms is -1"),
        (lambda: Credentials(certificate="c.pem"), "mutual TLS needs both certificate and key"),
        (lambda: Credentials(tls=False, ca="c.pem"), "are for TLS, and tls is False"),
        (lambda: Credentials(metadata={"X-Key": "a"}), "must be in lower case: use 'x-key'"),
        (
            lambda: ToxicityClient(credentials=Credentials(ca="/no/such.pem")),
            "/no/such.pem cannot be read .*a PEM",
        ),
    ],
)
def test_values_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


def test_secrets_do_not_show() -> None:
    shown = repr(Credentials(token="s3cret", metadata={"x-key": "s3cret"}, certificate="c.pem", key="s3cret.pem"))
    assert "s3cret" not in shown and "c.pem" in shown


# --- tokens and TLS


class Guarded(Stub):
    """Wants a token."""

    def ModelReady(self, request: Any, context: Any) -> Any:
        if dict(context.invocation_metadata()).get("authorization") != "Bearer good":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed")
        return super().ModelReady(request, context)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.ModelReady(request, context)
        return super().ModelMetadata(request, context)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate and a client's, made here."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates, and is not here")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test authority")
    (folder / "names").write_text("subjectAltName=DNS:toxicity.test\n")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=toxicity.test")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *sign)
    return folder


@pytest.fixture(scope="module")
def guarded(certificates: Path) -> Iterator[Stub]:
    """A server that wants mutual TLS and a token."""
    model = Guarded()
    server = grpc.server(ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(model, server)
    read = {name: (certificates / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem")}
    pair = ((read["server.key"], read["server.pem"]),)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, read["ca.pem"], True))
    model.grpc_url = f"127.0.0.1:{port}"
    server.start()
    yield model
    server.stop(None).wait()


def credentials(folder: Path, **other: Any) -> Credentials:
    given: dict[str, Any] = {
        "ca": folder / "ca.pem",
        "certificate": folder / "client.pem",
        "key": folder / "client.key",
        "server_name": "toxicity.test",
        "token": "good",
    }
    return Credentials(**given | other)


def test_mutual_tls_and_a_token(guarded: Stub, certificates: Path) -> None:
    with ToxicityClient(guarded.grpc_url, credentials=credentials(certificates)) as client:
        client.wait_ready(5)
        assert client.classify(["0.5"])[0].scores["toxic"] == 0.5

    async def go() -> None:
        async with AsyncToxicityClient(guarded.grpc_url, credentials=credentials(certificates)) as client:
            assert (await client.score("0.5")).scores["toxic"] == 0.5

    asyncio.run(go())


def test_a_token_may_change(guarded: Stub, certificates: Path) -> None:
    tokens = iter(["bad", "good", "good", "good"])
    with ToxicityClient(guarded.grpc_url, credentials=credentials(certificates, token=lambda: next(tokens))) as client:
        with pytest.raises(AccessDenied, match="UNAUTHENTICATED: a token is needed.*: check the credentials"):
            client.info()
        assert client.info().version == "1"


@pytest.mark.parametrize(
    "lacking", [{"certificate": None, "key": None}, {"ca": None}, {"server_name": None}, {"server_name": "other.test"}]
)
def test_who_cannot_prove_it_does_not_get_in(guarded: Stub, certificates: Path, lacking: dict[str, Any]) -> None:
    given = credentials(certificates, **lacking)
    with (
        ToxicityClient(guarded.grpc_url, credentials=given, retry=Retry(attempts=1), timeout=5) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.classify(["0.5"])


def test_no_tls_where_the_server_wants_it(guarded: Stub) -> None:
    with ToxicityClient(guarded.grpc_url, retry=Retry(attempts=1)) as client, pytest.raises(ServerUnavailable):
        client.info()


# --- on the wire


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_requests_are_compressed_where_asked_for(stub: Stub, compression: Any) -> None:  # noqa: F811
    heads = []
    stub.fault = lambda request, context: heads.append(dict(context.invocation_metadata()))
    with ToxicityClient(
        stub.grpc_url,
        compression=compression,
        credentials=Credentials(tls=False, token=lambda: "abc", metadata={"x-team": "games"}),
    ) as client:
        assert client.classify(["0.5", "x" * 10_000])[1].truncated
    (head,) = heads
    assert (head["authorization"], head["x-team"]) == ("Bearer abc", "games")
