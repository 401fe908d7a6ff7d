"""The limit: the served encoder alone, on ONNX Runtime, with nothing around it.

One process, as many threads as the machine has cores, batches of comments of like length, their token ids ready. No
server on the same cores and the same graph can be faster for long.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from export.triton import served_version
from train.artifact import normalizer_from

NORMALIZED_SHARE = 4
"""As in ``export/templates/texts.py``: how much of a text is normalized, in what is read of it."""

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Encoder:
    """The parts of a model in a repository that the limit needs.

    :param graph: the ONNX file. :param tokenizer: the folder with ``tokenizer.json`` and ``settings.json``.
    """

    graph: Path
    tokenizer: Path

    @classmethod
    def of(cls, repository: Path, model: str) -> Encoder:
        """:raises FileNotFoundError: when the model is no transformer that the exporter wrote."""
        version, _ = served_version(repository / model / "config.pbtxt")
        found = cls(
            repository / f"{model}_encoder" / str(version) / "model.onnx",
            repository / f"{model}_tokenizer" / str(version),
        )
        for file in (found.graph, found.tokenizer / "tokenizer.json"):
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: the limit is measured on a transformer; export one")
        return found

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((self.tokenizer / "settings.json").read_text(encoding="utf-8"))
        return settings

    def prepare(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizer sees them: normalized and cut."""
        settings = self.settings()
        most = settings["max_characters"]
        if settings["normalize"]:
            normalize = normalizer_from(self.tokenizer / "normalizer.py")
            texts = [normalize(text[: NORMALIZED_SHARE * most]) for text in texts]
        return [text[:most] for text in texts]

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """``Encoding`` objects, cut to the model's length."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.tokenizer / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.settings()["max_tokens"])
        encodings: list[Any] = tokenizer.encode_batch(self.prepare(texts))
        return encodings

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.encode(texts)]


def session(graph: Path, threads: int) -> Any:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # faster where lengths differ, and what the server sets
    options.log_severity_level = 3
    return InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def feed(model: Any, rows: Rows) -> dict[str, np.ndarray]:
    """A batch as the graph's inputs want it: ragged, with the widths of the rows, or padded with a mask.

    :raises ValueError: for a graph with other inputs.
    """
    kinds = {tensor.name: np.int64 if "int64" in tensor.type else np.int32 for tensor in model.get_inputs()}
    lengths = np.array([len(row) for row in rows])
    values = np.concatenate([np.asarray(row) for row in rows])
    if set(kinds) == {"input_ids", "widths"}:
        tensors = {"input_ids": values, "widths": lengths[:, None]}
    elif set(kinds) == {"input_ids", "attention_mask"}:
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = values
        tensors = {"input_ids": ids, "attention_mask": mask}
    else:
        raise ValueError(f"the graph has the inputs {sorted(kinds)}, known are input_ids with widths or attention_mask")
    return {name: tensors[name].astype(kind) for name, kind in kinds.items()}


def score(encoder: Encoder, rows: Rows) -> np.ndarray:
    """The graph's scores of comments, each by itself. *Shape:* ``(comments, labels)``."""
    model = session(encoder.graph, 1)
    return np.concatenate([model.run(["scores"], feed(model, [row]))[0] for row in rows])


@dataclass(frozen=True)
class Settings:
    """:param sessions: at the same time, each with so many ``threads``. :param batch: comments."""

    sessions: int
    threads: int
    batch: int = 4


class Bench:
    """A process with the sessions loaded, that scores batches when told to."""

    def __init__(self, encoder: Encoder, rows: Rows, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, encoder, rows, settings), daemon=True)
        self._process.start()
        there.close()
        self._pipe.recv()

    def measure(self, seconds: float) -> tuple[int, float, float]:
        """Comments, the rate in comments a second, and seconds of CPU."""
        self._pipe.send(seconds)
        result: tuple[int, float, float] = self._pipe.recv()
        return result

    def close(self) -> None:
        self._pipe.close()  # the process ends at that
        self._process.join(5)
        self._process.terminate()
        self._process.join()


def _work(pipe: Pipe, encoder: Encoder, rows: Rows, settings: Settings) -> None:
    sessions = [session(encoder.graph, settings.threads) for _ in range(settings.sessions)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    starts = range(0, len(order), settings.batch)
    batches = [feed(sessions[0], [rows[i] for i in order[start : start + settings.batch]]) for start in starts]
    random.Random(0).shuffle(batches)  # so that a part of a pass is a sample of the whole
    turn, lock = 0, threading.Lock()
    for model in sessions:
        model.run(["scores"], batches[0])
    pipe.send("ready")

    def loop(model: Any, until: float, done: list[tuple[int, float]]) -> None:
        nonlocal turn
        comments, started = 0, time.perf_counter()
        while time.perf_counter() < until:
            with lock:
                batch = batches[turn % len(batches)]
                turn += 1
            comments += len(model.run(["scores"], batch)[0])
        done.append((comments, time.perf_counter() - started))

    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        done: list[tuple[int, float]] = []
        cpu, until = time.process_time(), time.perf_counter() + seconds
        threads = [threading.Thread(target=loop, args=(model, until, done)) for model in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = sum(comments / took for comments, took in done)
        pipe.send((sum(comments for comments, _ in done), rate, time.process_time() - cpu))
