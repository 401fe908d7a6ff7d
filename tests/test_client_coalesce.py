"""Single comments of concurrent callers, joined into requests: for threads and for tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from test_client_sync import Stub, abort, stub  # noqa: F401  (a fixture)

from client import AsyncToxicityClient, Batching, InvalidInput, Result, ServerBusy, Timeout, ToxicityClient
from client.coalesce import Queue, Waiting
from client.wire import Call

KINDS = ["threads", "tasks"]
Answer = Result | BaseException


def ask(stub: Stub, kind: str, texts: list[Any], timeouts: list[float] | None = None, **options: Any) -> list[Answer]:  # noqa: F811
    """What each of as many concurrent callers gets."""
    limits = timeouts or [10.0] * len(texts)
    if kind == "threads":

        def one(client: ToxicityClient, text: str, timeout: float) -> Answer:
            try:
                return client.score(text, timeout=timeout)
            except Exception as error:
                return error

        with ToxicityClient(stub.grpc_url, **options) as client, ThreadPoolExecutor(len(texts)) as pool:
            client.info()
            return list(pool.map(one, [client] * len(texts), texts, limits))

    async def go() -> list[Answer]:
        async with AsyncToxicityClient(stub.grpc_url, **options) as client:
            await client.info()
            calls = [client.score(text, timeout=timeout) for text, timeout in zip(texts, limits, strict=True)]
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(go())


def number(i: int) -> str:
    return f"{i / 1000:.3f}"


def value(answer: Answer) -> str:
    assert isinstance(answer, Result), answer
    return f"{answer.scores['toxic']:.3f}"


def sizes(stub: Stub) -> list[int]:  # noqa: F811
    return [request.inputs[0].shape[0] for request in stub.requests]


def slow(seconds: float) -> Callable[[Any, Any], None]:
    return lambda request, context: time.sleep(seconds)


@pytest.mark.parametrize("kind", KINDS)
def test_concurrent_callers_share_requests_and_get_their_own_answers(stub: Stub, kind: str) -> None:  # noqa: F811
    stub.fault = slow(0.05)
    answers = ask(stub, kind, [number(i) for i in range(100)])
    assert [value(a) for a in answers] == [number(i) for i in range(100)]
    assert sum(sizes(stub)) == 100
    assert len(stub.requests) < 50 and max(sizes(stub)) <= 32
    assert max(a.timing.queued_s for a in answers if isinstance(a, Result)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_alone_does_not_wait_for_company(stub: Stub, kind: str) -> None:  # noqa: F811
    (answer,) = ask(stub, kind, ["0.5"], batching=Batching(delay_ms=2000))
    assert isinstance(answer, Result)
    assert answer.timing.queued_s < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_delay_ends_the_wait_for_company(stub: Stub, kind: str) -> None:  # noqa: F811
    """While a request is under way that takes long, the next does not wait for its end."""
    stub.fault = slow(1.5)
    start = time.monotonic()
    answers = ask(stub, kind, [number(i) for i in range(6)], batching=Batching(delay_ms=100, size=100))
    assert [value(a) for a in answers] == [number(i) for i in range(6)]
    assert time.monotonic() - start < 2.9  # two waves one after the other would take 3
    assert all(a.timing.queued_s < 1.2 for a in answers if isinstance(a, Result))


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_requests_than_allowed_are_under_way(stub: Stub, kind: str) -> None:  # noqa: F811
    lock, inside, most = threading.Lock(), 0, 0

    def watch(request: Any, context: Any) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1

    stub.fault = watch
    answers = ask(stub, kind, [number(i) for i in range(40)], batching=Batching(size=4, in_flight=2))
    assert [value(a) for a in answers] == [number(i) for i in range(40)]
    assert most == 2
    assert max(sizes(stub)) <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_cannot_be_sent_is_its_callers_business(stub: Stub, kind: str) -> None:  # noqa: F811
    answers = ask(stub, kind, ["0.1", 3, "0.2", "\ud800", "0.3"])
    assert [value(answers[i]) for i in (0, 2, 4)] == ["0.100", "0.200", "0.300"]
    assert isinstance(answers[1], InvalidInput) and "text is a int" in str(answers[1])
    assert isinstance(answers[3], InvalidInput) and "lone surrogate" in str(answers[3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_the_server_refuses_is_its_callers_business(stub: Stub, kind: str) -> None:  # noqa: F811
    def refuse(request: Any, context: Any) -> None:
        if b"poison" in request.raw_input_contents[0]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this text is not for me")

    stub.fault = refuse
    texts = [number(i) for i in range(12)]
    texts[5] = "poison"
    answers = ask(stub, kind, texts)
    assert isinstance(answers[5], InvalidInput) and "not for me" in str(answers[5])
    assert [value(a) for i, a in enumerate(answers) if i != 5] == [t for i, t in enumerate(texts) if i != 5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_deadline_hurts_nobody_else(stub: Stub, kind: str) -> None:  # noqa: F811
    stub.fault = slow(0.6)
    texts = [number(i) for i in range(10)]
    answers = ask(stub, kind, texts, [0.3 if i % 2 else 10.0 for i in range(10)])
    for i, answer in enumerate(answers):
        if i % 2:
            assert isinstance(answer, Timeout)
            assert "did not answer within 0.3 s" in str(answer)
            assert 0.25 < answer.waited_s < 0.6
        else:
            assert value(answer) == texts[i]


@pytest.mark.parametrize("kind", KINDS)
def test_each_caller_gets_an_error_of_its_own(stub: Stub, kind: str) -> None:  # noqa: F811
    stub.fault = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    answers = ask(stub, kind, ["0.1", "0.2", "0.3"])
    assert [type(a) for a in answers] == [ServerBusy] * 3
    assert len({id(a) for a in answers}) == 3
    assert all(a.remedy and a.request_id and a.model == "toxicity" for a in answers if isinstance(a, ServerBusy))


def test_a_cancelled_task_hurts_nobody_else(stub: Stub) -> None:  # noqa: F811
    stub.fault = slow(0.3)

    async def go() -> None:
        async with AsyncToxicityClient(stub.grpc_url) as client:
            await client.info()
            calls = [asyncio.ensure_future(client.score(number(i))) for i in range(6)]
            await asyncio.sleep(0.1)
            calls[0].cancel()
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert [value(a) for a in found[1:]] == [number(i) for i in range(1, 6)]

    asyncio.run(go())


# --- the queue itself


def entry(row: bytes) -> Waiting:
    return Waiting(row, Call("a:1", "m", 10.0))


def test_a_request_is_limited_by_texts_tokens_and_bytes() -> None:
    for limits, rows, batches in [
        (Batching(size=3, in_flight=9), [b"x"] * 7, [3, 3, 1]),
        (Batching(tokens=10, in_flight=9), [b"x" * 12] * 5, [2, 2, 1]),  # 12 bytes are about 5 tokens
        (Batching(bytes=30, in_flight=9), [b"x" * 12] * 5, [2, 2, 1]),
        (Batching(bytes=30, in_flight=9), [b"x" * 99] * 2, [1, 1]),  # a text that is too long goes alone
    ]:
        queue: Queue[Waiting] = Queue(limits)
        for row in rows:
            queue.add(entry(row))
        taken = []
        while len(queue):
            taken.append(len(queue.take()))
        assert taken == batches, limits


def test_the_servers_limits_count_too() -> None:
    queue: Queue[Waiting] = Queue(Batching(size=32, tokens=20, in_flight=9))
    queue.learn(max_batch_size=4, max_tokens=8)
    for _ in range(5):
        queue.add(entry(b"x" * 10_000))  # cut to 8 tokens by the model
    assert [len(queue.take()) for _ in range(3)] == [2, 2, 1]


def test_a_caller_who_left_is_not_sent() -> None:
    queue: Queue[Waiting] = Queue(Batching())
    first, second = entry(b"a"), entry(b"b")
    queue.add(first)
    queue.add(second)
    first.gone = True
    assert queue.take() == [second]
