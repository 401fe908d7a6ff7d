"""How the served model batches, by its own counters."""

from __future__ import annotations

import re
import threading
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from serve.server import TritonServer

pytestmark = pytest.mark.triton

SHORT, LONG = "you idiot", "This article was merged after a long discussion on its talk page. " * 6


def counters(server: TritonServer) -> dict[str, float]:
    """Triton's and our counters of the encoder and the tokenizer, once ours are sent."""
    time.sleep(0.6)
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    found = (re.match(r'(\w+)\{model="toxicity_(encoder|tokenizer)".*\} ([\d.e+]+)', line) for line in lines)
    return {f"{m[2]} {m[1]}": float(m[3]) for m in found if m}


def ask(server: TritonServer, requests: list[list[str]]) -> dict[str, float]:
    """All at the same time; returns what the counters grew by."""
    before = counters(server)
    barrier = threading.Barrier(len(requests))
    failed: list[BaseException] = []

    def send(texts: list[str]) -> None:
        try:
            with grpcclient.InferenceServerClient(server.grpc_url) as client:
                rows = np.array([text.encode() for text in texts], object).reshape(-1, 1)
                tensor = grpcclient.InferInput("TEXT", list(rows.shape), "BYTES")
                tensor.set_data_from_numpy(rows)
                barrier.wait()
                assert client.infer("toxicity", [tensor], client_timeout=60).as_numpy("scores").shape[0] == len(texts)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=send, args=(texts,)) for texts in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    after = counters(server)
    return {name: after[name] - before.get(name, 0.0) for name in after}


def test_a_broken_request_fails_alone(server: TritonServer) -> None:
    """Token ids as no tokenizer gives them, joined with those of right requests."""
    right, broken = [101, 2023, 102], ([], [-1, -1], [101, 10**6, 102])
    answers: list[tuple[bool, str]] = []
    barrier = threading.Barrier(24)

    def send(row: list[int], fails: bool) -> None:
        ids = np.array([row], np.int32)
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            tensor = grpcclient.InferInput("input_ids", list(ids.shape), "INT32")
            tensor.set_data_from_numpy(ids)
            barrier.wait()
            try:
                found = client.infer("toxicity_encoder", [tensor], client_timeout=60).as_numpy("scores").shape
                answers.append((fails, str(found)))
            except InferenceServerException as error:
                answers.append((fails, str(error.status())))

    rows = [(broken[i % 6 // 2], True) if i % 2 else (right, False) for i in range(24)]
    threads = [threading.Thread(target=send, args=row) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(False, "(1, 6)")] * 12 + [(True, "StatusCode.INVALID_ARGUMENT")] * 12


def test_requests_of_unlike_lengths_are_joined(server: TritonServer) -> None:
    grown = ask(server, [[(SHORT, LONG)[i % 2]] for i in range(32)])
    assert grown["encoder nv_inference_count"] == 32
    # two instances, and what was not there yet when they began: far from one call for each change of length
    assert grown["encoder nv_inference_exec_count"] <= 16


def test_counters_count_rows_tokens_and_padding(server: TritonServer) -> None:
    grown = ask(server, [[SHORT, LONG, SHORT]])
    assert grown["encoder tritox_encoder_rows_total"] == grown["tokenizer tritox_tokenizer_comments_total"] == 3
    tokens = grown["encoder tritox_encoder_tokens_total"]
    assert tokens == grown["tokenizer tritox_tokenizer_tokens_total"] > 60
    assert grown["encoder tritox_encoder_runs_total"] == 2  # those of equal length together
    assert grown["encoder tritox_encoder_padding_total"] == 0
    assert grown["tokenizer tritox_tokenizer_truncated_total"] == 0


def test_scores_are_counted_by_label(server: TritonServer) -> None:
    def histogram() -> dict[tuple[str, str, str], float]:
        with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        found = (re.match(r"tritox_encoder_score_(\w+)\{(.*)\} ([\d.e+]+)", line) for line in lines)
        pairs = [(m[1], dict(re.findall(r'(\w+)="([^"]*)"', m[2])), float(m[3])) for m in found if m]
        return {(name, labels["label"], labels.get("le", "")): value for name, labels, value in pairs}

    time.sleep(4)  # what earlier tests asked for has been counted, too
    before = histogram()
    ask(server, [[SHORT, "Thank you for your help with the article."]])
    until = time.monotonic() + 20
    count = ("count", "toxic", "")
    while (after := histogram()).get(count, 0) < before.get(count, 0) + 2 and time.monotonic() < until:
        time.sleep(0.2)
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    assert grown["count", "toxic", ""] == grown["bucket", "toxic", "+Inf"] == grown["bucket", "threat", "1.0"] == 2
    assert grown["bucket", "toxic", "0.5"] == 1  # the other is an insult
    assert 0.5 < grown["sum", "toxic", ""] < 1.5


def test_comments_of_all_lengths_are_run_by_length_without_padding(server: TritonServer) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 110, 64)
    grown = ask(server, [[" ".join(["word"] * int(n)) for n in lengths]])
    assert grown["encoder tritox_encoder_padding_total"] == 0
    # at most 128 tokens at a time, two of which are no words
    assert grown["encoder tritox_encoder_runs_total"] == sum(
        -(-np.sum(lengths == n) // max(1, 128 // (n + 2))) for n in set(lengths)
    )
