"""How fast the forms of a graph are, on batches such as the server makes of real comments."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from onnxruntime import InferenceSession
from tqdm import tqdm

from export.graph import run
from export.parity import pad

Batches = list[tuple[np.ndarray, np.ndarray]]

JOINED = 8
"""Requests of one comment that the batcher joins, at a moderate load."""

PER_REQUEST = 16


def mixes(ids: Sequence[Sequence[int]], pad_id: int) -> dict[str, Batches]:
    """The comments as batches of two kinds of traffic, by name: padded to the longest, in the order in which they came
    (a server that sorts by length does better).
    """

    def batches(size: int) -> Batches:
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        return [pad(part, max(map(len, part)), pad_id) for part in parts]

    return {"1 comment a request": batches(JOINED), f"{PER_REQUEST} comments a request": batches(PER_REQUEST)}


def measure(
    sessions: Mapping[str, InferenceSession], batches: Mapping[str, Batches], rounds: int = 3
) -> dict[str, dict[str, float]]:
    """Comments a second of CPU time, by session and kind of traffic: the median of interleaved rounds.

    :param sessions: of one thread each. CPU time, because other work on the machine does not count in it.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    with tqdm(total=rounds * len(sessions) * len(batches), desc="speed", unit=" runs") as bar:
        for _ in range(rounds):
            for mix, parts in batches.items():
                for name, session in sessions.items():
                    started = time.process_time()
                    for input_ids, mask in parts:
                        run(session, input_ids, mask)
                    seconds.setdefault((name, mix), []).append(time.process_time() - started)
                    bar.update()
    comments = {mix: sum(len(input_ids) for input_ids, _ in parts) for mix, parts in batches.items()}
    return {
        name: {mix: round(comments[mix] / float(np.median(seconds[name, mix])), 1) for mix in batches}
        for name in sessions
    }


def overall(rates: Mapping[str, float]) -> float:
    """One number of a form's rates over the kinds of traffic: their geometric mean."""
    return float(np.exp(np.mean(np.log(list(rates.values())))))


def filled(batches: Batches) -> float:
    """The share of the tokens in padded batches that are real."""
    return float(sum(mask.sum() for _, mask in batches) / sum(mask.size for _, mask in batches))
