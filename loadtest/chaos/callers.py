"""Callers who ask for the golden comments all the while, and know what the answer must be."""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import Credentials, Retry, ServerUnavailable, ToxicityClient, ToxicityError
from loadtest.chaos.fleet import KEY, Fleet

DEADLINE_S, SLACK_S = 5.0, 1.5
"""What a call may take, and what it may take longer on a machine that is busy before it counts as hanging."""
SLOW_S = 1.5
"""A caller who waits longer than this is not served well."""
GRPC_PAUSE_S, NEWCOMER_PAUSE_S, HTTP_PAUSE_S = 0.04, 0.2, 0.1
MOST_COMMENTS = 4
"""In a call."""
PASSING = (429, 502, 503, 504)
"""Of HTTP's statuses: come again. Any other one that is no success is wrong here."""


@dataclass(frozen=True)
class Golden:
    """Comments, and the scores that they must get.

    :param tolerance: how far a score may be off.
    """

    texts: Sequence[str]
    scores: Sequence[Sequence[float]]
    tolerance: float

    def wrong(self, place: int, scores: Sequence[float]) -> str | None:
        """What is wrong with the scores of a comment."""
        expected = self.scores[place]
        if len(scores) != len(expected):
            return f"{len(scores)} scores instead of {len(expected)}"
        off = max(abs(found - due) for found, due in zip(scores, expected, strict=True))
        return None if off <= self.tolerance else f"golden comment {place} is off by {off:.4f}"


def read_golden(repository: Path, model: str = "toxicity", tolerance: float | None = None) -> Golden:
    """:param tolerance: by default the model's own."""
    file = next(repository.glob(f"{model}_encoder/*/golden.json"))
    content = json.loads(file.read_text(encoding="utf-8"))
    tokenizer = repository / f"{model}_tokenizer" / file.parent.name / "golden.json"
    texts = content.get("texts") or json.loads(tokenizer.read_text(encoding="utf-8"))["texts"]
    return Golden(texts, content["scores"], 2 * content["tolerance"] if tolerance is None else tolerance)


@dataclass(frozen=True)
class Call:
    """One call.

    :ivar way: ``grpc`` or ``http``. :ivar began: by ``time.monotonic``. :ivar took_s: infinite, if it never ended.
    :ivar error: what the caller was told. :ivar clear: that it may come again, where it may.
    :ivar wrong: what is wrong with a score.
    """

    way: str
    began: float
    took_s: float
    error: str | None = None
    clear: bool = True
    wrong: str | None = None

    @property
    def hung(self) -> bool:
        return self.took_s > DEADLINE_S + SLACK_S

    @property
    def bad(self) -> bool:
        """The caller was not served well."""
        return self.error is not None or self.took_s > SLOW_S


class Callers:
    """Threads that ask: two of gRPC who stay, one who comes anew each time, and one of HTTP who does, too."""

    def __init__(self, fleet: Fleet, golden: Golden) -> None:
        self.fleet, self.golden = fleet, golden
        self.calls: list[Call] = []
        self._under_way: dict[str, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._tls = ssl.create_default_context(cafile=str(fleet.secrets / "callers/ca.pem"))
        makers = (self._stay, self._stay, self._come_and_go, self._web)
        self._threads = [
            threading.Thread(target=target, args=(f"caller{n}", n), name=f"caller{n}", daemon=True)
            for n, target in enumerate(makers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Call]:
        """All calls; one that does not end is among them."""
        self._stop.set()
        limit = time.monotonic() + DEADLINE_S + SLACK_S + 0.5
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        with self._lock:
            endless = [Call(way, began, float("inf")) for way, began in self._under_way.values()]
            return sorted(self.calls + endless, key=lambda call: call.began)

    def _turns(self, number: int) -> Iterator[list[int]]:
        """Places of golden comments, one to four at a time."""
        count = len(self.golden.texts)
        for turn in itertools.count(number):
            yield [(turn * 5 + n) % count for n in range(1 + turn % MOST_COMMENTS)]

    def _stay(self, name: str, number: int) -> None:
        with self._client() as client:
            for places in self._turns(number):
                if self._stop.wait(GRPC_PAUSE_S):
                    return
                self._ask(name, client, places)

    def _come_and_go(self, name: str, number: int) -> None:
        for places in self._turns(number):
            if self._stop.wait(NEWCOMER_PAUSE_S):
                return
            with self._client() as client:
                self._ask(name, client, places)

    def _client(self) -> ToxicityClient:
        host, port = self.fleet.door
        return ToxicityClient(f"{host}:{port}", credentials=self.fleet.caller, timeout=DEADLINE_S)

    def _ask(self, name: str, client: ToxicityClient, places: list[int]) -> None:
        began = self._begin(name, "grpc")
        try:
            results = client.classify([self.golden.texts[place] for place in places])
            found = [list(result.scores.values()) for result in results]
            self._end(name, Call("grpc", began, time.monotonic() - began, wrong=self._check(places, found)))
        except ToxicityError as error:
            said, clear = f"{type(error).__name__}: {error}", isinstance(error, ServerUnavailable)
            self._end(name, Call("grpc", began, time.monotonic() - began, said, clear))
        except Exception as error:  # whatever else comes out of a client is wrong
            said = f"{type(error).__name__}: {error}"
            self._end(name, Call("grpc", began, time.monotonic() - began, said, clear=False))

    def _web(self, name: str, number: int) -> None:
        for places in self._turns(number):
            if self._stop.wait(HTTP_PAUSE_S):
                return
            began = self._begin(name, "http")
            try:
                status, answer = post(self.fleet.door, self._tls, [self.golden.texts[place] for place in places])
                took_s = time.monotonic() - began
                if status == 200:
                    found = [list(result["scores"].values()) for result in answer["results"]]
                    self._end(name, Call("http", began, took_s, wrong=self._check(places, found)))
                else:
                    self._end(name, Call("http", began, took_s, f"{status} {answer}", status in PASSING))
            except (OSError, http.client.HTTPException) as error:  # nobody there, or lost on the way
                said = f"{type(error).__name__}: {error}"
                self._end(name, Call("http", began, time.monotonic() - began, said))
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                self._end(name, Call("http", began, time.monotonic() - began, said, clear=False))

    def _check(self, places: Sequence[int], found: Sequence[Sequence[float]]) -> str | None:
        if len(found) != len(places):
            return f"{len(found)} results for {len(places)} comments"
        return next((w for p, s in zip(places, found, strict=True) if (w := self.golden.wrong(p, s))), None)

    def _begin(self, name: str, way: str) -> float:
        began = time.monotonic()
        with self._lock:
            self._under_way[name] = way, began
        return began

    def _end(self, name: str, call: Call) -> None:
        with self._lock:
            self._under_way.pop(name, None)
            self.calls.append(call)


def post(
    address: tuple[str, int], tls: ssl.SSLContext, texts: Sequence[str], timeout_s: float = DEADLINE_S
) -> tuple[int, Any]:
    """Ask ``/predict``; see :func:`ask_gateway`."""
    return ask_gateway(address, tls, "/predict", {"texts": list(texts)}, timeout_s)


def ask_gateway(
    address: tuple[str, int], tls: ssl.SSLContext, path: str, content: object, timeout_s: float
) -> tuple[int, Any]:
    """Ask on a connection of its own: the status, and the answer, or the text of an error.

    :raises OSError: when nobody answers.
    """
    connection = http.client.HTTPSConnection(*address, timeout=timeout_s, context=tls)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        connection.request("POST", path, json.dumps(content), headers)
        reply = connection.getresponse()
        raw = reply.read()
        if reply.status != 200:
            return reply.status, raw.decode("utf-8", "replace")[:300]
        return 200, json.loads(raw)
    finally:
        connection.close()


def check_all(fleet: Fleet, golden: Golden) -> tuple[int, list[str], list[str]]:
    """Every golden comment, by every way in and at every replica: how many were compared, what was wrong with a score,
    and who did not answer.
    """
    host, port = fleet.door
    ways: list[tuple[str, str, Credentials]] = [("the door", f"{host}:{port}", fleet.caller)]
    ways += [(replica.name, replica.url, fleet.service) for replica in fleet.replicas]
    found: dict[str, list[list[float]]] = {}
    silent: list[str] = []
    for name, url, credentials in ways:
        try:
            with ToxicityClient(url, credentials=credentials, timeout=10) as client:
                found[name] = [list(result.scores.values()) for result in client.classify(list(golden.texts))]
        except ToxicityError as error:
            silent.append(f"{name}: {type(error).__name__}: {error}")
    tls = ssl.create_default_context(cafile=str(fleet.secrets / "callers/ca.pem"))
    try:
        status, answer = post(fleet.door, tls, golden.texts, 10)
        if status == 200:
            found["the gateway"] = [list(result["scores"].values()) for result in answer["results"]]
        else:
            silent.append(f"the gateway: {status} {answer}")
    except (OSError, http.client.HTTPException) as error:
        silent.append(f"the gateway: {type(error).__name__}: {error}")
    wrong = []
    for name, rows in found.items():
        wrong += [f"{name}: {w}" for place, scores in enumerate(rows) if (w := golden.wrong(place, scores))]
    return sum(map(len, found.values())), wrong, silent


def answers(fleet: Fleet, url: str, golden: Golden, timeout_s: float = 1.0) -> bool:
    """Whether a replica scores a golden comment, and rightly."""
    try:
        with ToxicityClient(url, credentials=fleet.service, timeout=timeout_s, retry=Retry(attempts=1)) as client:
            scores = list(client.classify([golden.texts[0]])[0].scores.values())
    except ToxicityError:
        return False
    return golden.wrong(0, scores) is None
