from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, ROOT

from loadtest import bench, bench_report, processes
from loadtest.connections import _fields
from loadtest.contenders import RIVALS, ContenderFailed, Limit, SharedServer, Tritox, rivals
from loadtest.generator import GeneratorFailed, Load, drive
from loadtest.limit import Bench, Encoder, Settings, feed, score, session
from loadtest.responder import Responder, ceiling

TEXTS = ["You are such an idiot", "What a lovely day, thank you for the map", "ok", "I will find you. " * 60]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.of(REPOSITORY, "toxicity")


@pytest.fixture(scope="module")
def tritox(server: Any) -> Tritox:
    shared = SharedServer(REPOSITORY)
    shared.server = server  # the tests' own, which they stop
    contender = Tritox(shared, "toxicity", "toxicity_encoder")
    contender.start()
    return contender


def load_on(contender: Tritox, requests: list[list[str]], **more: Any) -> Load:
    bodies = [contender.body(texts) for texts in requests]
    options = {"clients": 3, "connections": 2, "warm_up_s": 0.2, "seconds": 1.0, **more}
    return Load("grpc", contender.host, contender.port, contender.path, bodies, [len(t) for t in requests], **options)


# --- the load generator


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("size", [10, 40_000, 300_000])  # within a frame, several frames, beyond HTTP/2's first window
def test_requests_of_any_size_get_their_own_answers(protocol: Any, size: int) -> None:
    with Responder(protocol, b"y" * size) as responder:
        load = Load(protocol, "127.0.0.1", responder.port, "/x", [b"x" * size, b"z"], [2, 3], 4, 2, 0.1, 0.4)
        calls: list[str] = []
        outcome = drive(load, 1, lambda: calls.append("begin"), lambda: calls.append("end"))
    assert not outcome.errors and calls == ["begin", "end"]
    assert outcome.answers == {0: b"y" * size, 1: b"y" * size}
    assert outcome.requests == len(outcome.latencies_ms) > 10
    assert 2 * outcome.requests < outcome.comments < 3 * outcome.requests
    assert 0.4 <= outcome.seconds < 1 and 0 < outcome.cpu_s < outcome.seconds


def test_the_ceiling_is_far_above_what_python_clients_reach() -> None:
    load = Load("grpc", "", 0, "/x", [b"x" * 100], [1], clients=8)
    assert ceiling(load, b"y" * 100, 0.5) > 5_000


def test_several_processes_share_the_clients() -> None:
    with Responder("http", b"{}") as responder:
        load = Load("http", "127.0.0.1", responder.port, "/x", [b"1", b"2", b"3"], [1] * 3, 3, 1, 0.1, 0.4)
        outcome = drive(load, 2)
    assert set(outcome.answers) == {0, 1, 2} and not outcome.errors


def test_no_server_and_no_success_are_said() -> None:
    with pytest.raises(GeneratorFailed, match="127.0.0.1:1 cannot be reached"):
        drive(Load("grpc", "127.0.0.1", 1, "/x", [b""], [1]))


def test_header_blocks_are_read() -> None:
    block = b"\x3f\xe1\x1f\x88\x40\x0bgrpc-status\x0213\x00\x0cgrpc-message\x7f\x01" + b"m" * 128
    assert dict(_fields(block)) == {b"grpc-status": b"13", b"grpc-message": b"m" * 128}


@pytest.mark.triton
def test_a_real_server_answers_every_request_with_its_scores(tritox: Tritox, encoder: Encoder) -> None:
    outcome = drive(load_on(tritox, [TEXTS[:1], TEXTS, TEXTS[1:3]], seconds=2.0))
    assert not outcome.errors and set(outcome.answers) == {0, 1, 2}
    expected = score(encoder, encoder.rows(TEXTS))
    for number, rows in enumerate((slice(0, 1), slice(0, 4), slice(1, 3))):
        np.testing.assert_allclose(tritox.scores(outcome.answers[number]), expected[rows], atol=0.1)


@pytest.mark.triton
def test_a_refused_request_is_an_error_and_not_an_answer(tritox: Tritox) -> None:
    load = load_on(tritox, [TEXTS[:1], TEXTS * 20])  # more than max_batch_size
    outcome = drive(load)
    assert set(outcome.answers) == {0}
    assert list(outcome.errors) and all("batch-size" in error or "batch size" in error for error in outcome.errors)
    with pytest.raises(GeneratorFailed, match="no request succeeded"):
        drive(load_on(tritox, [TEXTS * 20]))


# --- the limit


def test_the_limit_scores_what_the_server_scores(encoder: Encoder) -> None:
    rows = encoder.rows(TEXTS)
    assert [len(row) for row in rows][-1] == encoder.settings()["max_tokens"]
    limit = Bench(encoder, rows * 4, Settings(sessions=2, threads=1, batch=4))
    try:
        comments, rate, cpu = limit.measure(0.5)
    finally:
        limit.close()
    assert comments >= 8 and rate > 0 and cpu > 0
    model = session(encoder.graph, 1)
    together = model.run(["scores"], feed(model, rows))[0]
    np.testing.assert_allclose(together, score(encoder, rows), atol=0.1)


def test_batches_for_graphs_with_and_without_a_mask() -> None:
    class Graph:
        def __init__(self, **inputs: str) -> None:
            self.inputs = [argparse.Namespace(name=name, type=f"tensor({kind})") for name, kind in inputs.items()]

        def get_inputs(self) -> list[Any]:
            return self.inputs

    rows = [[5, 6, 7], [8]]
    masked = feed(Graph(input_ids="int64", attention_mask="int32"), rows)
    assert masked["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]] and masked["input_ids"].dtype == np.int64
    assert masked["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] and masked["attention_mask"].dtype == np.int32
    ragged = feed(Graph(input_ids="int32", widths="int32"), rows)
    assert ragged["input_ids"].tolist() == [5, 6, 7, 8] and ragged["widths"].tolist() == [[3], [1]]
    with pytest.raises(ValueError, match="has the inputs .'pixels'."):
        feed(Graph(pixels="int32"), rows)


# --- processes


def test_the_cpu_of_a_whole_tree_is_counted_and_can_be_paused() -> None:
    burn = "import os, sys\nif os.fork() == 0:\n    os.setpgid(0, 0)\nprint(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        assert len(processes.tree(process.pid)) == 2
        before = processes.cpu_s(process.pid)
        deadline = time.monotonic() + 10
        while processes.cpu_s(process.pid) < before + 0.2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes.cpu_s(process.pid) >= before + 0.2
        processes.pause(process.pid)
        time.sleep(0.1)
        stopped = processes.cpu_s(process.pid)
        time.sleep(0.3)
        assert processes.cpu_s(process.pid) == stopped
        assert processes.memory_bytes(process.pid) > 1e6
        processes.resume(process.pid)
        while processes.cpu_s(process.pid) == stopped and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes.cpu_s(process.pid) > stopped
    finally:
        processes.kill(process.pid)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL and processes.tree(process.pid) == []


# --- what counts and what does not


def turn(**values: Any) -> bench.Round:
    whole = {"round": 0, "contender": "tritox", "per_request": 1, "requests": 100, "requests_per_s": 10.0}
    return bench.Round(**{**whole, "checked": 9, "mean_difference": 0.001, **values})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"errors": {"HTTP 503: busy": 3}}, "3 failed: HTTP 503: busy"),
        ({"requests": 7}, "7 requests, must be at least 20"),
        ({"generator_share": 0.8}, "busy for 80% of the time, allowed are 60%: use more --generators"),
        ({"generator_ceiling": 12.0}, "10 requests/s are more than 60% of what the load generator can make, 12"),
        ({"checked": 0}, "no score was compared"),
        ({"mean_difference": 0.05}, "differ from the expected ones by 0.0500 on average, allowed are 0.02"),
        ({"mean_difference": math.nan}, "not the same model"),
        ({"served": {"cache_hits": 5.0}}, "5 answers came from a cache"),
    ],
)
def test_rounds_that_do_not_count_say_why(values: dict[str, Any], reason: str | None) -> None:
    found = bench.reasons(turn(**values), Tritox(SharedServer(REPOSITORY), "toxicity", "toxicity_encoder"))
    assert found == [] if reason is None else len(found) == 1 and reason in found[0]


def test_mixed_up_answers_and_those_of_another_shape_are_found() -> None:
    contender = Tritox(SharedServer(REPOSITORY), "toxicity", "toxicity_encoder")
    rng = np.random.default_rng(0)
    expected = (rng.random((50, 1, 6)) < 0.1).astype(np.float32)

    def outcome_of(scores: np.ndarray) -> bench.Outcome:
        from tritonclient.grpc import service_pb2 as pb

        answers = {}
        for number, rows in enumerate(scores):
            output = pb.ModelInferResponse.InferOutputTensor(name="scores", datatype="FP32", shape=rows.shape)
            reply = pb.ModelInferResponse(outputs=[output], raw_output_contents=[rows.tobytes()])
            answers[number] = reply.SerializeToString()
        return bench.Outcome(seconds=1, answers=answers)

    right, mixed, short = turn(), turn(), turn()
    bench.check_answers(right, outcome_of(expected), contender, expected)
    bench.check_answers(mixed, outcome_of(expected[::-1].copy()), contender, expected)
    bench.check_answers(short, outcome_of(expected[:, :, :5].copy()), contender, expected)
    assert (right.checked, right.max_difference) == (50, 0.0) and bench.reasons(right, contender) == []
    assert "mixed-up answers" in bench.reasons(mixed, contender)[0]
    assert "unreadable answer: scores of the shape (1, 5), must be (1, 6)" in bench.reasons(short, contender)[0]


def rounds(name: str, rates: list[float], invalid: int | None = None, size: int = 1) -> list[dict[str, Any]]:
    return [
        asdict(turn(round=i, contender=name, per_request=size, comments_per_s=rate, invalid=["x"] * (i == invalid)))
        for i, rate in enumerate(rates)
    ]


def test_ratios_are_formed_within_rounds_and_invalid_rounds_do_not_count() -> None:
    # the second round's machine was half as fast, which the ratios must not show
    measured = rounds("limit", [100, 50, 100]) + rounds("tritox", [90, 45, 9000], 2)
    measured += rounds("mosec", [30, 15, 30]) + rounds("fastapi", [40, 10, 9], 1)
    rows = {row["contender"]: row for row in bench_report.summarize(measured)}
    assert rows["tritox"]["comments_per_s"] == {"median": 67.5, "min": 45, "max": 90}
    assert (rows["tritox"]["rounds"], rows["tritox"]["invalid_rounds"]) == (2, 1)
    assert rows["tritox"]["to_limit"] == pytest.approx({"median": 0.9, "min": 0.9, "max": 0.9})
    assert rows["tritox"]["best_rival"] == "mosec"
    assert rows["tritox"]["to_best_rival"]["median"] == pytest.approx(3.0)
    picture = bench_report.svg(list(rows.values()))
    assert "= 90% of the limit" in picture and picture.count("<rect") == 5


def test_a_contender_without_a_valid_round_is_shown_as_such() -> None:
    (row,) = bench_report.summarize(rounds("tritox", [5.0], 0))
    assert row["comments_per_s"] is None and row["to_limit"] is None
    assert bench_report._table([row])[-1].endswith("| 0 (1 INVALID) |")


def test_settings_shares_and_padding_come_from_the_servers_counters() -> None:
    contender = Tritox(SharedServer(REPOSITORY), "toxicity", "toxicity_encoder")
    before = {"nv_inference_count": 10.0, "nv_inference_exec_count": 10.0, "tritox_encoder_tokens_total": 5.0}
    after = {
        **{"nv_inference_count": 90.0, "nv_inference_exec_count": 20.0, "nv_inference_request_success": 40.0},
        **{
            "nv_inference_queue_duration_us": 80_000.0,
            "tritox_encoder_tokens_total": 905.0,
            "tritox_encoder_padding_total": 100.0,
        },
        "tritox_cache_hits": 3.0,
    }
    expected = {"mean_batch": 8.0, "queue_ms": 2.0, "padding_waste": 0.1, "cache_hits": 3.0}
    assert contender.derived(before, after) == pytest.approx(expected)


# --- the command


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "out" / "bench"
    code = bench.main(["--out", str(out), "--warm-up", "0.3", "--clients", "4", *arguments])
    file = out.with_suffix(".json")
    return code, json.loads(file.read_text()) if file.is_file() else {}


@pytest.mark.triton
def test_the_benchmark_of_the_limit_and_a_real_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "MIN_REQUESTS", 2)  # a busy machine is as good here
    rows = [{"text": text} for text in TEXTS * 8]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    code, result = run(
        *(tmp_path, "--corpus", str(tmp_path / "corpus.jsonl"), "--contenders", "limit,tritox"),
        *("--requests", "1,4", "--rounds", "1", "--seconds", "1"),
    )
    output = capsys.readouterr()
    assert code == 0, output.err
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".jsonl", ".md", ".svg"}
    lines = (tmp_path / "out/bench.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result["rounds"] and len(lines) == 4
    assert all(not line["invalid"] for line in result["rounds"]), result["rounds"]
    for row in result["summary"]:
        assert row["comments_per_s"]["median"] > 0 and row["cpu_us_per_comment"] > 0 and row["to_limit"]["median"] > 0
    ours = next(row for row in result["summary"] if row["contender"] == "tritox")
    assert ours["mean_batch"] >= 1 and ours["p99_ms"] >= ours["p50_ms"] > 0
    assert result["contenders"]["tritox"]["settings"]["toxicity_encoder"]["max_batch_size"] == 64
    assert result["machine"]["cores"] == len(os.sched_getaffinity(0)) and result["corpus"]["comments"] == 32
    assert "| tritox |" in output.out and (tmp_path / "out/bench.md").read_text() in output.out


@pytest.mark.triton
def test_a_near_empty_encoder_gives_answers_that_can_be_checked(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(f"comment number {i}, and more of it" for i in range(64)))
    code, result = run(
        *(tmp_path, "--near-empty", "--corpus", str(tmp_path / "corpus.txt"), "--contenders", "tritox"),
        *("--requests", "16", "--rounds", "1", "--seconds", "1"),
    )
    assert code == 0 and result["near_empty"]
    (line,) = result["rounds"]
    assert line["checked"] == 64 and line["max_difference"] < 1e-4, line
    assert line["invalid"] == [] or line["generator_share"] > 0.6, line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "limit,nginx"], "--contenders has nginx, known are limit, tritox, gateway, fastapi"),
        (
            ["--contenders", "limit,mosec", "--requests", "1", "--artifact", "none", "--corpus", "{corpus}"],
            "contenders",
        ),
        (["--contenders", "limit", "--requests", "99", "--corpus", "{corpus}"], "requests of 99 comments"),
        (["--corpus", "none.jsonl"], "none.jsonl cannot be read"),
        (["--contenders", "limit", "--settings", "none.json", "--corpus", "{corpus}"], "--settings none.json cannot"),
        (["--model", "nosuch", "--corpus", "{corpus}"], "has no model 'nosuch'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.txt").write_text("one\ntwo\n")
    code, _ = run(tmp_path, *(a.format(corpus=tmp_path / "c.txt") for a in arguments))
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("error: ") and message in error


# --- rivals


def test_the_folder_for_rivals_gives_the_artifacts_scores(artifact: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    from loadtest.rivals.convert import convert
    from train.artifact import Layout

    convert(artifact, tmp_path / "model")
    rows = Layout(artifact).read_validation()[:40]
    classify = pipeline("text-classification", str(tmp_path / "model"), trust_remote_code=True, top_k=None)
    answers = classify([row["text"] for row in rows], truncation=True, batch_size=8)
    labels = Layout(artifact).read_labels().labels
    found = [[{a["label"]: a["score"] for a in answer}[label] for label in labels] for answer in answers]
    np.testing.assert_allclose(found, [row["scores"] for row in rows], atol=1e-3)
    assert np.ptp(found) > 0.5


def test_a_model_that_rivals_cannot_have_is_refused(artifact: Path, tmp_path: Path) -> None:
    import shutil

    from loadtest.rivals.convert import convert
    from train.artifact import InvalidArtifact

    shutil.copytree(artifact, tmp_path / "calibrated")
    (tmp_path / "calibrated/calibration.json").write_text("{}")
    with pytest.raises(InvalidArtifact, match="calibrated by isotonic regression"):
        convert(tmp_path / "calibrated", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_int8_graph_for_rivals_gives_the_logits_of_the_served_scores(encoder: Encoder, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "loadtest/rivals/int8.py"),
        str(encoder.graph),
        str(tmp_path / "m.onnx"),
        "-1",
    ]
    subprocess.run(command, check=True)
    rows = encoder.rows(TEXTS)
    model = session(tmp_path / "m.onnx", 1)
    tensors = {name: array.astype(np.int64) for name, array in _masked(rows).items()}
    logits = model.run(["logits"], tensors)[0]
    served = session(encoder.graph, 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), served.run(["scores"], feed(served, rows))[0], atol=0.02)


def _masked(rows: list[list[int]]) -> dict[str, np.ndarray]:
    width = max(map(len, rows))
    return {
        "input_ids": np.array([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


def test_a_rival_that_is_not_installed_says_how_to_install_it(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.rivals.environments.FOLDER", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "toxic"}}))
    found = rivals(tmp_path, encoder, TEXTS)
    assert tuple(rival.name for rival in found) == RIVALS
    for rival in found:
        with pytest.raises(ContenderFailed, match=f"{rival.name} is not installed: python -m loadtest.rivals install"):
            rival.start()


@pytest.mark.slow
def test_every_rival_that_is_installed_scores_like_the_artifact(tmp_path: Path) -> None:
    """On the starter artifact: ``pytest -m slow tests/test_loadtest_bench.py``."""
    if not (ROOT / "artifacts/starter").is_dir() or not (ROOT / ".rivals").is_dir():
        pytest.skip("needs artifacts/starter and .rivals: train the first, install the second")
    code, result = run(tmp_path, "--requests", "4", "--rounds", "1", "--seconds", "20", "--comments", "200")
    assert code == 0
    assert {row["contender"] for row in result["rounds"]} == set(result["contenders"])
    assert all(not row["invalid"] for row in result["rounds"]), result["rounds"]


def test_the_limits_settings_are_searched_over_the_cores(encoder: Encoder) -> None:
    limit = Limit(encoder, TEXTS)
    cores = len(os.sched_getaffinity(0))
    assert all(s["sessions"] * s["threads"] == cores for s in limit.grid()) and limit.settings in limit.grid()
