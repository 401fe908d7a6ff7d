"""Which requests are sent again, to whom, and how often: retries, hedges, and the choice among servers."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from test_client_sync import Stub, abort, stub  # noqa: F401  (a fixture)

from client import (
    AccessDenied,
    AsyncToxicityClient,
    Hedge,
    InvalidInput,
    ModelNotFound,
    Retry,
    ServerBusy,
    ServerUnavailable,
    Timeout,
    ToxicityClient,
    ToxicityError,
)
from client.pool import Budget, Endpoint, Latencies, Pool

QUICK = Retry(base_s=0.01)


@pytest.fixture
def pair() -> Iterator[tuple[Stub, Stub]]:
    with ExitStack() as stack:
        stubs = Stub(), Stub()
        for each in stubs:
            server = each.start()
            stack.callback(lambda server=server: server.stop(None).wait())
        yield stubs


class Failing:
    """Fails so many requests, then none."""

    def __init__(self, times: int, status: grpc.StatusCode, detail: str = "no") -> None:
        self.left, self.status, self.detail = times, status, detail

    def __call__(self, request: Any, context: Any) -> None:
        if self.left:
            self.left -= 1
            context.abort(self.status, self.detail)


# --- retries


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
        (grpc.StatusCode.INVALID_ARGUMENT, "incomplete string data for inference input 'TEXT'"),  # another caller's
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_what_may_pass_is_sent_again(stub: Stub, status: grpc.StatusCode, detail: str) -> None:  # noqa: F811
    stub.fault = Failing(2, status, detail)
    with ToxicityClient(stub.grpc_url, retry=QUICK) as client:
        (result,) = client.classify(["0.5"])
    assert result.timing.tries == len(stub.requests) == 3
    assert len({request.id for request in stub.requests}) == 1  # the same request in the server's log
    assert result.request_id == stub.requests[0].id


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "bad shape", InvalidInput),
        (grpc.StatusCode.NOT_FOUND, "unknown model", ModelNotFound),
        (grpc.StatusCode.UNAUTHENTICATED, "no token", AccessDenied),
        (grpc.StatusCode.PERMISSION_DENIED, "wrong token", AccessDenied),
        (grpc.StatusCode.INTERNAL, "a bug", ToxicityError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", Timeout),
    ],
)
def test_what_will_not_pass_is_sent_once(
    stub: Stub,  # noqa: F811
    status: grpc.StatusCode,
    detail: str,
    kind: type[ToxicityError],
) -> None:
    stub.fault = abort(status, detail)
    with ToxicityClient(stub.grpc_url, retry=QUICK) as client, pytest.raises(ToxicityError) as caught:
        client.classify(["0.5"])
    assert type(caught.value) is kind
    assert caught.value.tries == len(stub.requests) == 1


def test_attempts_are_limited_and_counted(stub: Stub) -> None:  # noqa: F811
    stub.fault = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    for attempts in (1, 3):
        stub.requests.clear()
        with (
            ToxicityClient(stub.grpc_url, retry=Retry(attempts=attempts, base_s=0.01)) as client,
            pytest.raises(ServerBusy, match="full") as caught,
        ):
            client.classify(["0.5"])
        assert caught.value.tries == len(stub.requests) == attempts


def test_pauses_are_random_and_grow_up_to_the_cap() -> None:
    with ToxicityClient("a:1", retry=Retry(attempts=99, base_s=1.0, cap_s=4.0, reserve=10_000)) as client:
        error = ServerUnavailable("gone")
        for tries, most in ((1, 2.0), (2, 4.0), (3, 4.0), (50, 4.0)):
            call = client._call(100.0)
            call.tries = tries
            pauses = [client._pause(error, call, []) or 0.0 for _ in range(300)]
            assert max(pauses) <= most
            assert max(pauses) > most * 0.9 and min(pauses) < most * 0.1  # full jitter: from zero on


def test_no_retry_begins_that_the_deadline_would_cut_off(stub: Stub) -> None:  # noqa: F811
    stub.fault = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    with ToxicityClient(stub.grpc_url, retry=Retry(attempts=99, base_s=50, cap_s=50)) as client:
        start = time.monotonic()
        with pytest.raises(ServerBusy):
            client.classify(["0.5"], timeout=2)
        assert time.monotonic() - start < 2.5


def test_a_server_in_trouble_is_not_buried_in_retries(stub: Stub) -> None:  # noqa: F811
    stub.fault = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    with ToxicityClient(stub.grpc_url, retry=Retry(attempts=4, base_s=0.001, reserve=5, budget=0.5)) as client:
        client.info()
        for _ in range(20):
            with pytest.raises(ServerBusy):
                client.classify(["0.5"])
        # at most: one for each, the reserve, and what reading the model's data earned
        assert 20 + 5 <= len(stub.requests) <= 20 + 5 + 1
        stub.fault = lambda request, context: None
        for _ in range(4):
            client.classify(["0.5"])
        stub.requests.clear()
        stub.fault = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        with pytest.raises(ServerBusy):
            client.classify(["0.5"])
        assert len(stub.requests) == 3  # the four answers earned two


# --- several servers


def test_requests_are_spread_over_servers(pair: tuple[Stub, Stub]) -> None:
    for each in pair:
        each.fault = lambda request, context: time.sleep(0.02)
    with ToxicityClient([each.grpc_url for each in pair]) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: client.classify(["0.5"]), range(80)))
    assert min(len(each.requests) for each in pair) > 20


def test_a_slow_server_gets_less(pair: tuple[Stub, Stub]) -> None:
    pair[0].fault = lambda request, context: time.sleep(0.3)
    pair[1].fault = lambda request, context: time.sleep(0.01)
    with ToxicityClient([each.grpc_url for each in pair]) as client, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: client.classify(["0.5"]), range(60)))
    assert len(pair[0].requests) < len(pair[1].requests) / 2


def test_a_server_that_has_not_loaded_the_model_yet_is_passed_over(pair: tuple[Stub, Stub]) -> None:
    pair[0].fault = abort(grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'toxicity' is not found")
    with ToxicityClient(",".join(each.grpc_url for each in pair)) as client:
        for _ in range(10):
            assert client.classify(["0.5"])[0].model == "toxicity"
        pair[1].fault = pair[0].fault
        with pytest.raises(ModelNotFound, match="check the name"):
            client.classify(["0.5"])


def test_any_ready_server_is_enough(pair: tuple[Stub, Stub]) -> None:
    pair[0].ready = False
    with ToxicityClient([pair[0].grpc_url, "127.0.0.1:1", pair[1].grpc_url]) as client:
        client.wait_ready(5)
        pair[1].ready = False
        with pytest.raises(Timeout, match="not ready within 0.5 s: "):
            client.wait_ready(0.5)


# --- hedges


def test_a_late_request_is_sent_once_more_and_the_first_answer_counts(pair: tuple[Stub, Stub]) -> None:
    pair[0].fault = lambda request, context: time.sleep(2.0)
    urls = [each.grpc_url for each in pair]
    with ToxicityClient(urls, hedge=Hedge(delay_s=0.2), stall_s=5) as client:
        client.info()
        tries = []
        for _ in range(6):
            start = time.monotonic()
            (result,) = client.classify(["0.5"])
            assert time.monotonic() - start < 1.5
            tries.append(result.timing.tries)
    assert set(tries) <= {1, 2} and 2 in tries


@pytest.mark.parametrize("kind", [ToxicityClient, AsyncToxicityClient])
def test_a_request_that_was_overtaken_is_not_cancelled(pair: tuple[Stub, Stub], kind: type) -> None:
    """Triton 24.10 dies of calls that are cancelled in the moment of their answer."""
    still_wanted: list[bool] = []

    def slow(request: Any, context: Any) -> None:
        time.sleep(0.4)
        still_wanted.append(context.is_active())

    pair[0].fault = slow
    urls, options = [each.grpc_url for each in pair], {"hedge": Hedge(delay_s=0.05, budget=1.0), "stall_s": 5}

    async def asynchronously() -> None:
        async with AsyncToxicityClient(urls, **options) as client:
            for _ in range(6):
                await client.classify(["0.5"])
            await asyncio.sleep(0.8)

    if kind is AsyncToxicityClient:
        asyncio.run(asynchronously())
    else:
        with ToxicityClient(urls, **options) as client:
            for _ in range(6):
                client.classify(["0.5"])
            time.sleep(0.8)
    assert still_wanted and all(still_wanted)


def test_one_server_can_be_hedged_with_itself(stub: Stub) -> None:  # noqa: F811
    first = True

    def slow_at_first(request: Any, context: Any) -> None:
        nonlocal first
        if first:
            first = False
            time.sleep(2)

    stub.fault = slow_at_first
    with ToxicityClient(stub.grpc_url, hedge=Hedge(delay_s=0.1)) as client:
        start = time.monotonic()
        (result,) = client.classify(["0.5"])
        assert time.monotonic() - start < 1.5
    assert (result.timing.tries, len(stub.requests)) == (2, 2)


def test_hedges_have_a_budget(stub: Stub) -> None:  # noqa: F811
    stub.fault = lambda request, context: time.sleep(0.05)
    with ToxicityClient(stub.grpc_url, hedge=Hedge(delay_s=0.0, budget=0.25)) as client:
        client.info()
        for _ in range(40):
            client.classify(["0.5"])
    assert 40 + 10 <= len(stub.requests) <= 40 + 10 + 10


def test_by_default_a_request_is_late_beyond_the_95th_percentile_of_its_size() -> None:
    latencies = Latencies()
    for i in range(100):
        latencies.add(1, i / 1000)
        latencies.add(32, i / 100)
    assert latencies.p95(1) == pytest.approx(0.095, abs=0.02)
    assert latencies.p95(32) == pytest.approx(0.95, abs=0.2)
    assert latencies.p95(8) is None
    for _ in range(200):
        latencies.add(1, 5.0)
    assert latencies.p95(1) == 5.0  # only recent ones count


# --- the pool itself


class Server:
    """What a pool is told to open and to probe."""

    def __init__(self, targets: list[str], connections: int = 2) -> None:
        self.opened: list[str] = []
        self.probes: list[Endpoint[str]] = []
        self.pool: Pool[str] = Pool(targets, connections, self.open, self.probes.append)

    def open(self, target: str) -> str:
        self.opened.append(target)
        return target


def test_connections_are_opened_when_those_that_are_open_are_crowded() -> None:
    server = Server(["a:1"], connections=3)
    taken = [server.pool.take() for _ in range(16)]
    assert len(server.opened) == 1
    taken += [server.pool.take() for _ in range(100)]
    assert len(server.opened) == 3
    for endpoint, lane in taken:
        server.pool.release(endpoint, lane)
    assert server.pool.endpoints[0].under_way == 0
    assert {lane.under_way for lane in server.pool.endpoints[0].lanes} == {0}


def test_the_less_loaded_of_two_is_taken() -> None:
    server = Server(["a:1", "b:1"])
    counts = {"a:1": 0, "b:1": 0}
    for _ in range(100):
        counts[server.pool.take()[0].target] += 1
    assert counts == {"a:1": 50, "b:1": 50}


def test_a_lost_server_is_left_out_until_a_probe_finds_it() -> None:
    server = Server(["a:1", "b:1"])
    a, b = server.pool.endpoints
    server.pool.lost(a)
    assert {server.pool.take()[0] for _ in range(20)} == {b}
    assert server.probes == []  # not at once
    a.probe_at = 0
    server.pool.take()
    server.pool.take()
    assert server.probes == [a]  # one at a time
    server.pool.probed(a, False)
    assert a.probe_at > time.monotonic() and not a.up
    pauses = []
    for _ in range(8):
        server.pool.probed(a, False)
        pauses.append(a.pause_s)
    assert pauses == sorted(pauses) and pauses[-1] == 1.0  # later each time, up to a second
    server.pool.probed(a, True)
    assert a.up and a in {server.pool.take()[0] for _ in range(40)}


def test_a_server_in_doubt_is_used_last_and_probed_once() -> None:
    server = Server(["a:1", "b:1"])
    a, b = server.pool.endpoints
    server.pool.doubt(a)
    server.pool.doubt(a)
    assert server.probes == [a]
    assert {server.pool.take()[0] for _ in range(20)} == {b}
    assert server.pool.take(avoid=[b])[0] is a
    server.pool.probed(a, True)
    assert a.up and not a.suspect


def test_when_all_are_down_each_is_tried() -> None:
    server = Server(["a:1", "b:1", "c:1"])
    for endpoint in server.pool.endpoints:
        server.pool.lost(endpoint)
    tried: list[Endpoint[str]] = []
    for _ in range(3):
        tried.append(server.pool.take(tried)[0])
    assert set(tried) == set(server.pool.endpoints)


def test_a_budget_starts_full_and_earns_slowly() -> None:
    budget = Budget(0.5, 2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend() and not budget.spend()
    for _ in range(100):
        budget.earn()
    assert budget.left == 2


def test_errors_survive_a_process_boundary_with_all_they_carry() -> None:
    error = ServerBusy("full", endpoint="a:1", model="m", request_id="r", waited_s=2.0, tries=3, remedy="wait")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "full: wait"
    assert vars(copy) == vars(error)
    own = error.for_caller(waited_s=9.0)
    assert (type(own), str(own), own.waited_s, own.remedy) == (ServerBusy, "full: wait", 9.0, "wait")
