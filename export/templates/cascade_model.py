"""Triton model: a cascade in front of a model of comments, the ensemble that it sends only what it must.

A comment takes the first of these ways that knows its scores::

    TEXT --decode, normalize, cut--> cache --> the same comment under way --> early stages --> encoder (the ensemble)
         INVALID_ARGUMENT: not UTF-8                                          |                UNAVAILABLE: too many
                                                                              sure of all labels    under way

Outputs: ``scores``, ``truncated`` as the ensemble's (an early stage reads a comment up to ``max_characters``, so what
it answers counts as truncated beyond these alone), and ``stage`` INT32 [n, 1]: who gave the scores of a row. 0 is the
cache or a comment that was under way already, 1 and up the early stages in their order, and the number after the last
of these is the encoder.

The cache is keyed on the full normalized text: exact, and apart for each version, since each version is a process of
its own. A text that was repeated once is known by its bytes as well, and then is not even normalized. What was longer
than ``max_characters`` is known by its bytes alone. Only final scores are stored, never an error. INT8 takes its ranges
over a whole batch, so a comment's cached scores are those that it had in the batch where it was scored.

How requests are kept from blocking each other, found by trial on Triton 2.51.0 (24.10): an ``async def execute`` is
waited for before the next call, so one slow comment stops the model. ``execute`` may instead return None in the default
(not decoupled) mode and answer each request later through its response sender. It may be any thread that does; BLS
calls run side by side from as many threads as make them, and ``async_exec`` is nothing else (a call in asyncio's
thread pool, which has 6 threads on 2 cores). So ``encoder_calls`` threads make the calls. Where everything is known at
once, the responses are returned as a list, which costs less than the senders do. A client's cancellation and a gRPC
deadline that has passed show in the sender's ``is_cancelled``; a request's ``timeout`` in ``request.timeout()``.

A call costs about as much as 10 comments do here, so comments that come while all threads wait are joined to batches
of like length, within ``chunk_rows`` and ``chunk_characters``, in a fair order (``cascade_queue.py``). When it is their
turn, requests that were cancelled or whose ``timeout`` has passed are refused, and comments that nobody waits for any
more are dropped. At most ``max_rows_in_flight`` comments are under way: a request that would exceed it is refused at
once. An encoder's error refuses the requests that hold a comment of the failed batch, and those alone.

``settings.json``: ``labels``, ``max_characters``, ``normalize``, ``encoder`` ({"model", "version"}), ``stages`` (see
``stages.py``; may be empty), and the keys of ``LIMITS``, each of which a parameter of that name in ``config.pbtxt``
overrides; ``cache_bytes`` 0 switches the cache off.

Written by the exporter into every version folder: change ``export/templates/cascade_model.py`` instead.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cascade_cache import CommentCache, Key
from cascade_metrics import EVERY_S, Metrics
from cascade_queue import FairQueue, Row
from texts import NORMALIZED_SHARE, TextReader, decode

LIMITS = {
    "cache_bytes": 0,
    "max_rows_in_flight": 1,
    "encoder_calls": 1,
    "chunk_rows": 1,
    "chunk_characters": 1,
    "row_characters": 1,
}
"""Settings that are numbers, and the least that each may be."""
CHECK_AFTER_S = 0.02
"""A request that waited longer is asked whether it was cancelled: that is a call to another process."""


class Reply:
    """A request that is being answered.

    :ivar values: for each row its scores and whether it was truncated, as bytes; ``None`` while unknown.
    :ivar stages: for each row who answered it.
    :ivar missing: rows without a value.
    :ivar deadline: in seconds of the monotonic clock, or ``None``.
    :ivar error: the refusal, where it is refused.
    :ivar sender: answers the request after ``execute`` has returned; ``None`` where that is not needed.
    :ivar waits: the encoder's threads answer it, not ``execute``.
    :ivar lock: guards ``sender`` and ``done``: a sender must not be used once it has sent.
    :ivar done: it was answered.
    """

    __slots__ = ("deadline", "done", "error", "lock", "missing", "sender", "since", "stages", "values", "waits")

    def __init__(self, rows: int, since: float, timeout_us: int) -> None:
        self.values: list[bytes | None] = [None] * rows
        self.stages = [0] * rows
        self.missing = 0
        self.since = since
        self.deadline = since + timeout_us * 1e-6 if timeout_us else None
        self.sender: Any = None
        self.error: Any = None
        self.waits = False
        self.lock = threading.Lock()
        self.done = False


class TritonPythonModel:
    """What Triton's Python backend calls; one per version, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        settings = read_settings(folder / "settings.json", config)
        self.max_rows: int = settings["max_rows_in_flight"]
        self.chunk_rows: int = settings["chunk_rows"]
        self.chunk_characters: int = settings["chunk_characters"]
        self.row_characters: int = settings["row_characters"]
        self.encoder: dict[str, Any] = settings["encoder"]
        self.labels: list[str] = settings["labels"]
        self.reader = TextReader(settings["max_characters"], settings["normalize"])
        # what the ensemble reads of a text; no more is sent to it
        self.sent_characters = settings["max_characters"] * (NORMALIZED_SHARE if settings["normalize"] else 1)
        self.stages: list[Any] = []
        if settings["stages"]:
            import stages

            self.stages = stages.load(folder, settings)
            self.sure = stages.sure
        self.last = len(self.stages) + 1

        self.lock = threading.Lock()  # guards the cache, the rows in flight, the queue and all replies that wait
        self.work = threading.Condition(self.lock)
        self.cache = CommentCache(settings["cache_bytes"])
        self.flight: dict[Key, Row] = {}
        self.queue = FairQueue()
        own = {"model": args["model_name"], "version": args["model_version"]}
        self.metrics = Metrics(self.labels, own)
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self.call, daemon=True) for _ in range(settings["encoder_calls"])]
        self.threads.append(threading.Thread(target=self.publish, daemon=True))
        for thread in self.threads:
            thread.start()

    def finalize(self) -> None:
        self.closing.set()
        with self.work:
            self.work.notify_all()
        for thread in self.threads:
            thread.join()

    # --- one batch of requests: everything that is known at once

    def execute(self, requests: list[Any]) -> list[Any] | None:
        since = time.monotonic()
        replies: list[Reply] = []
        rows: list[bytes] = []  # of all requests, one behind the other
        owners: list[tuple[Reply, int]] = []  # of each row, its request, and its number there
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1).tolist()
            reply = Reply(len(texts), since, request.timeout())
            replies.append(reply)
            rows += texts
            owners += [(reply, i) for i in range(len(texts))]
        values, firsts, unknown = self.look_up(rows, owners)
        self.enqueue(requests, replies, rows, values, unknown, self.run_stages(firsts))
        if any(reply.sender for reply in replies):
            for request, reply in zip(requests, replies, strict=True):
                reply.sender = reply.sender or request.get_response_sender()
            self.send([reply for reply in replies if not reply.waits])
            return None
        return self.responses(replies)

    def look_up(
        self, rows: list[bytes], owners: list[tuple[Reply, int]]
    ) -> tuple[list[bytes | None], dict[Key, str], dict[int, Key | Row]]:
        """What the cache knows of the rows.

        :returns: each row's value or ``None``; the texts that were never seen, by key; and for each row without a value
            its key, or the comment that is under way.
        """
        get = self.cache.get
        with self.lock:
            values = [get(row) for row in rows] if self.cache.max_bytes else [None] * len(rows)
        decoded: dict[bytes, str] = {}
        for i, value in enumerate(values):
            row = rows[i]
            if value is None and row not in decoded:
                try:
                    decoded[row] = decode(row, owners[i][1])
                except ValueError as error:
                    self.refuse(owners[i][0], "invalid", str(error), pb_utils.TritonError.INVALID_ARG)
        texts, cuts = self.reader.prepare(list(decoded.values()))
        prepared: dict[bytes, tuple[Key, str]] = {
            row: (row if cut else text, text) for row, text, cut in zip(decoded, texts, cuts, strict=True)
        }
        firsts: dict[Key, str] = {}
        unknown: dict[int, Key | Row] = {}
        coalesced = 0
        with self.lock:
            for i, value in enumerate(values):
                if value is not None or owners[i][0].error is not None:
                    continue
                row = rows[i]
                key, text = prepared[row]
                found = get(key)
                under_way = self.flight.get(key)
                if found is not None:
                    values[i] = found
                    self.cache.put(row, found)  # a repeated text: next time its bytes are enough
                elif under_way is not None:
                    coalesced += 1
                    unknown[i] = under_way
                else:
                    coalesced += key in firsts
                    firsts.setdefault(key, text)
                    unknown[i] = key
        self.metrics.add("comments_total", len(rows))
        self.metrics.add("cache_hits_total", sum(value is not None for value in values))
        self.metrics.add("cache_misses_total", len(firsts))
        self.metrics.add("coalesced_total", coalesced)
        return values, firsts, unknown

    def run_stages(self, texts: dict[Key, str]) -> dict[Key, tuple[bytes, int]]:
        """The texts that an early stage is sure of, with their values and the stage's number."""
        answered: dict[Key, tuple[bytes, int]] = {}
        keys = list(texts)
        for number, stage in enumerate(self.stages, 1):
            if not keys:
                break
            try:
                part = [texts[key] for key in keys]
                scores = np.asarray(stage.scores(part), np.float32)
                sure = np.asarray(self.sure(stage, part, scores), bool)
            except Exception as error:  # the encoder can do without it: slower, not wrong
                self.metrics.add("stage_failures_total", 1)
                pb_utils.Logger.log_error(f"stage {stage.name} failed, the next one takes its comments: {error!r}")
                continue
            at = np.flatnonzero(sure).tolist()
            for i, value in zip(at, pack(scores[sure], np.zeros(len(at), bool)), strict=True):
                answered[keys[i]] = (for_key(keys[i], value), number)
            self.metrics.add("stage_comments_total", len(at), stage=stage.name)
            keys = [key for key in keys if key not in answered]
        return answered

    def enqueue(
        self,
        requests: list[Any],
        replies: list[Reply],
        rows: list[bytes],
        values: list[bytes | None],
        unknown: dict[int, Key | Row],
        early: dict[Key, tuple[bytes, int]],
    ) -> None:
        """Fill the replies with what is known, and hand what is not to the encoder's threads."""
        told: set[Key] = set()  # texts of which the row that was answered by an early stage is known
        with self.work:
            for key, (value, _) in early.items():
                self.cache.put(key, value)
            start = 0
            for request, reply in zip(requests, replies, strict=True):
                stop = start + len(reply.values)
                reply.values = values[start:stop]
                if unknown and reply.error is None:
                    new: dict[Key, Row] = {}
                    joined: list[tuple[Row, int]] = []
                    for i in range(start, stop):
                        what = unknown.get(i)
                        if what is None:
                            continue
                        if isinstance(what, Row):
                            if what.value is not None:
                                reply.values[i - start] = what.value
                                continue
                            what = what.key
                        if what in early:
                            reply.values[i - start], stage = early[what]
                            if what not in told:
                                told.add(what)
                                reply.stages[i - start] = stage
                            continue
                        row = self.flight.get(what) or new.get(what)
                        if row is None:
                            row = new[what] = self.row(what, rows[i], reply.since)
                            reply.stages[i - start] = self.last
                        joined.append((row, i - start))
                    if new and len(self.flight) + len(new) > self.max_rows:
                        self.refuse_full(reply, len(new))
                    elif joined:
                        for row, i in joined:
                            row.waiters.append((reply, i))
                        reply.missing = len(joined)
                        reply.waits = True
                        reply.sender = request.get_response_sender()
                        self.flight.update(new)
                        self.queue.add(list(new.values()))
                start = stop
            if self.queue:
                self.work.notify(len(self.queue))

    def row(self, key: Key, raw: bytes, since: float) -> Row:
        if isinstance(key, str):
            return Row(key, raw, min(len(key), self.row_characters), since)
        text = raw.decode()[: self.sent_characters]
        return Row(key, text.encode(), min(len(text), self.row_characters), since)

    # --- the encoder's threads

    def call(self) -> None:
        """What each of the threads does: take a batch, have it scored, answer, again."""
        while True:
            with self.work:
                while not self.queue and not self.closing.is_set():
                    self.work.wait()
                if self.closing.is_set():
                    return
                chunk = self.queue.take(self.chunk_rows, self.chunk_characters)
                replies = {reply for row in chunk for reply, _ in row.waiters}
            self.drop_the_late(replies)
            with self.lock:
                wanted = [row for row in chunk if not all(reply.done for reply, _ in row.waiters)]
                for row in chunk:
                    if row not in wanted:
                        row.gone = True
                        del self.flight[row.key]
            if wanted:
                self.score(wanted)

    def drop_the_late(self, replies: set[Reply]) -> None:
        """Refuse the requests whose time has passed, or whose client has gone."""
        now = time.monotonic()
        for reply in replies:
            if reply.deadline is not None and now >= reply.deadline:
                message = (
                    f"the request's timeout of {(reply.deadline - reply.since) * 1e3:.0f} ms passed before the encoder "
                    "was free: allow more, or send less at once"
                )
                self.refuse(reply, "deadline", message, pb_utils.TritonError.UNAVAILABLE)
                self.send([reply])
            elif now - reply.since > CHECK_AFTER_S:
                with reply.lock:
                    cancelled = not reply.done and reply.sender.is_cancelled()
                if cancelled:
                    self.refuse(reply, "cancelled", "the client cancelled the request", pb_utils.TritonError.CANCELLED)
                    self.send([reply])

    def score(self, chunk: list[Row]) -> None:
        """Have a batch scored, and answer the requests that waited for nothing else."""
        began = time.monotonic()
        self.metrics.add("wait_us_total", sum(began - row.since for row in chunk) * 1e6)
        values: list[bytes] | None = None
        message, code = "", pb_utils.TritonError.INTERNAL
        try:
            request = pb_utils.InferenceRequest(
                model_name=self.encoder["model"],
                model_version=self.encoder["version"],
                requested_output_names=["scores", "truncated"],
                inputs=[pb_utils.Tensor("TEXT", np.array([row.raw for row in chunk], object).reshape(-1, 1))],
            )
            response = request.exec()
            if response.has_error():
                message, code = response.error().message(), response.error().code()
            else:
                scores, truncated = (
                    pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in ("scores", "truncated")
                )
                if scores.shape != (len(chunk), len(self.labels)):
                    raise ValueError(f"it gave scores of shape {scores.shape} to {len(chunk)} comments")
                values = pack(scores, truncated)
        except Exception as error:  # whatever it is: the requests must have their answer
            message = str(error)
        self.metrics.add("encoder_batches_total", 1)
        self.metrics.add("encoder_us_total", (time.monotonic() - began) * 1e6)
        ready: list[Reply] = []
        with self.lock:
            for i, row in enumerate(chunk):
                del self.flight[row.key]
                if values is None:
                    row.gone = True
                    ready += [reply for reply, _ in row.waiters]
                    continue
                row.value = for_key(row.key, values[i])
                self.cache.put(row.key, row.value)
                for reply, at in row.waiters:
                    reply.values[at] = row.value
                    reply.missing -= 1
                    if not reply.missing:
                        ready.append(reply)
        if values is None:
            self.metrics.add("encoder_failures_total", 1)
            ready = list(dict.fromkeys(ready))
            for reply in ready:
                self.refuse(reply, "encoder", f"{self.encoder['model']} failed on a comment: {message}", code)
        else:
            self.metrics.add("stage_comments_total", len(chunk), stage="encoder")
        self.send(ready)

    # --- answers

    def refuse(self, reply: Reply, reason: str, message: str, code: Any) -> None:
        if reply.error is None:
            reply.error = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
            self.metrics.add("refused_total", 1, reason=reason)

    def refuse_full(self, reply: Reply, rows: int) -> None:
        message = (
            f"{len(self.flight)} comments are on their way to the encoder and the request brings {rows} new ones, but "
            f"at most {self.max_rows} may be: ask again later, send fewer, or raise max_rows_in_flight of the model"
        )
        self.refuse(reply, "full", message, pb_utils.TritonError.UNAVAILABLE)

    def send(self, replies: list[Reply]) -> None:
        """Answer requests through their senders; one that has its answer already is left alone."""
        replies = [reply for reply in replies if not reply.done]
        for reply, response in zip(replies, self.responses(replies), strict=True):
            with reply.lock:
                if reply.done:
                    continue
                reply.done = True
                try:
                    reply.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                except Exception as error:  # of one client; the others must have their answers
                    pb_utils.Logger.log_error(f"a response could not be sent: {error!r}")

    def responses(self, replies: list[Reply]) -> list[Any]:
        """The responses: refusals, and what is complete."""
        whole = [reply for reply in replies if reply.error is None]
        values = b"".join([value for reply in whole for value in reply.values if value is not None])
        raw = np.frombuffer(values, np.uint8).reshape(-1, 4 * len(self.labels) + 1)
        scores = np.ascontiguousarray(raw[:, :-1]).view(np.float32).reshape(-1, len(self.labels))
        truncated = raw[:, -1:].astype(bool)
        stages = np.array([stage for reply in whole for stage in reply.stages], np.int32).reshape(-1, 1)
        self.metrics.observe(scores)
        self.metrics.add("truncated_total", int(truncated.sum()))
        responses, start = [], 0
        for reply in replies:
            if reply.error is not None:
                responses.append(reply.error)
                continue
            stop = start + len(reply.values)
            tensors = [
                pb_utils.Tensor("scores", scores[start:stop]),
                pb_utils.Tensor("truncated", truncated[start:stop]),
                pb_utils.Tensor("stage", stages[start:stop]),
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses

    def publish(self) -> None:
        """What the thread of the metrics does."""
        while True:
            closing = self.closing.wait(EVERY_S)
            with self.lock:
                gauges = (self.cache.used_bytes, len(self.cache), len(self.flight))
            names = ("cache_bytes", "cache_entries", "rows_in_flight")
            # a version that is unloaded leaves its metrics behind: no memory, then
            self.metrics.publish(dict(zip(names, (0, 0, 0) if closing else gauges, strict=True)))
            if closing:
                return


def read_settings(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The version's settings, with the numbers that the config overrides.

    :raises TritonModelException: for a number that is too small, or none.
    """
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    parameters = config.get("parameters", {})
    for name, least in LIMITS.items():
        value = parameters[name]["string_value"] if name in parameters else settings[name]
        try:
            settings[name] = int(value)
        except ValueError:
            raise pb_utils.TritonModelException(f"{name} is {value!r}, must be a number") from None
        if settings[name] < least:
            raise pb_utils.TritonModelException(f"{name} is {value}, must be at least {least}")
    most = config["max_batch_size"]
    if settings["max_rows_in_flight"] < most:
        raise pb_utils.TritonModelException(
            f"max_rows_in_flight is {settings['max_rows_in_flight']}, but a request may bring max_batch_size comments, "
            f"{most}: raise the one or lower the other"
        )
    return settings


def pack(scores: np.ndarray, truncated: np.ndarray) -> list[bytes]:
    """For each row of scores (comments, labels) its FP32 scores and whether it was truncated, as bytes."""
    packed = np.empty((len(scores), 4 * scores.shape[1] + 1), np.uint8)
    packed[:, :-1] = np.ascontiguousarray(scores, np.float32).view(np.uint8)
    packed[:, -1] = truncated.reshape(-1)
    blob, width = packed.tobytes(), packed.shape[1]
    return [blob[start : start + width] for start in range(0, len(blob), width)]


def for_key(key: Key, value: bytes) -> bytes:
    """A comment that is known by its bytes was cut before any model read it."""
    return value if isinstance(key, str) else value[:-1] + b"\1"
