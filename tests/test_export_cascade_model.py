"""The cascade in a real Triton: before a small trained model, and before one that is slow or fails on demand."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from conftest import end_at_once
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from export.onnx import main as export
from export.triton import CASCADE_FILES, TEMPLATES, ServingSettings, cascade, cascade_settings, read_settings
from serve.server import TritonServer

STAGES = '''
"""A stage that is sure of every text with a word of its own in it, and leaves a mark of each call."""
from types import SimpleNamespace
import numpy as np

def load(folder, settings):
    def stage(entry):
        def scores(texts):
            if any("break the stage" in text for text in texts):
                raise RuntimeError("broken")
            return np.array([[entry["score"] if entry["word"] in text else 0.5] * labels for text in texts], np.float32)
        return SimpleNamespace(name=entry["name"], exits=np.array(entry["exits"]), scores=scores)
    labels = len(settings["labels"])
    return [stage(entry) for entry in settings["stages"]]

def sure(stage, texts, scores):
    exits = stage.exits
    return ((scores <= exits[:, 0]) | (scores >= exits[:, 1])).all(1)
'''

SLOW = '''
"""Stands for an encoder: waits as long as a text says, and fails where one says so."""
import re, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
        texts = [row.decode() for row in rows]
        time.sleep(max((float(m[1]) for m in (re.search(r"wait ([\\d.]+)", text) for text in texts) if m), default=0))
        if any("fail" in text for text in texts):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("it failed on purpose"))
        scores = np.array([[len(text) / 1000, len(texts) / 1000] for text in texts], np.float32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("scores", scores), pb_utils.Tensor("truncated", np.zeros((len(texts), 1), bool))]
        )
'''


def stage(word: str, score: float, labels: int) -> dict[str, Any]:
    return {"name": word, "file": "none", "word": word, "score": score, "exits": [[0.1, 0.9]] * labels}


def place(repository: Path, version: int, config: str, settings: dict[str, Any], normalizer: Path | None) -> None:
    model = repository / str(re.search(r'name: "(\w+_cascade)"', config)[1])  # type: ignore[index]
    folder = model / str(version)
    folder.mkdir(parents=True)
    for name, template in CASCADE_FILES.items():
        shutil.copy(TEMPLATES / template, folder / name)
    if normalizer:
        shutil.copy(normalizer, folder / "normalizer.py")
    (folder / "stages.py").write_text(STAGES)
    (folder / "settings.json").write_text(json.dumps(settings))
    (model / "config.pbtxt").write_text(config)


def slow_settings(name: str, max_batch_size: int = 8) -> ServingSettings:
    return ServingSettings(
        name=name,
        labels=("a", "b"),
        thresholds={"a": 0.5, "b": 0.5},
        problem_type="multi_label_classification",
        max_tokens=16,
        pad_token_id=0,
        precision="fp32",
        provenance={},
        max_batch_size=max_batch_size,
        instances=1,
    )


@pytest.fixture(scope="module")
def repository(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cascade") / "r"
    call = ["--artifact", str(artifact), "--repository", str(folder), "--comments", "100", "--instances", "1"]
    assert export([*call, "--quantize", "none"]) == 0
    settings = replace(read_settings(folder / "toxicity/1/export.json"), normalize=True)
    normalizer = Path(__file__).parent.parent / "train/normalizer.py"
    for version, score in ((1, 0.01), (2, 0.02)):
        stages = [stage("thanks", score, 6), stage("welcome", 0.95, 6)]
        config = cascade(settings, version).replace("versions: 2", "versions: 1\n    versions: 2")
        place(folder, version, config, cascade_settings(settings, 1, stages), normalizer)

    (folder / "slow/1").mkdir(parents=True)
    (folder / "slow/1/model.py").write_text(SLOW)
    (folder / "slow/config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 64\ninput { name: "TEXT" data_type: TYPE_STRING dims: 1 }\n'
        'output { name: "scores" data_type: TYPE_FP32 dims: 2 }\n'
        'output { name: "truncated" data_type: TYPE_BOOL dims: 1 }\ninstance_group { count: 2 kind: KIND_CPU }\n'
    )
    changes = {
        "slow": {"cache_bytes": 20_000, "max_rows_in_flight": 12, "encoder_calls": 2, "chunk_rows": 4},
        "absent": {"encoder": {"model": "slow", "version": 9}},
    }
    for name, change in changes.items():
        raw = cascade_settings(slow_settings("slow"), 1, [stage("thanks", 0.0, 2)]) | change
        place(folder, 1, cascade(slow_settings(name), 1), raw, None)
    uncached = cascade(slow_settings("uncached"), 1)
    uncached += 'parameters { key: "cache_bytes" value { string_value: "0" } }\n'
    place(folder, 1, uncached, cascade_settings(slow_settings("slow"), 1), None)
    return folder


class Front:
    """One server with all of them, and what is asked of it."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.client = grpcclient.InferenceServerClient(server.grpc_url)

    def __call__(
        self, texts: list[str | bytes], model: str = "slow_cascade", version: str = "", **options: Any
    ) -> tuple[np.ndarray, list[bool], list[int]]:
        rows = np.array([t.encode() if isinstance(t, str) else t for t in texts], object).reshape(-1, 1)
        tensor = grpcclient.InferInput("TEXT", list(rows.shape), "BYTES")
        tensor.set_data_from_numpy(rows)
        reply = self.client.infer(model, [tensor], version, **{"client_timeout": 60, **options})
        scores, truncated, stages = (reply.as_numpy(name) for name in ("scores", "truncated", "stage"))
        if model.endswith("_cascade"):
            assert scores.dtype == np.float32 and truncated.dtype == bool and stages.dtype == np.int32
            assert truncated.shape == stages.shape == (len(texts), 1)
            return scores, truncated.ravel().tolist(), stages.ravel().tolist()
        return scores, truncated.ravel().tolist(), []

    def at_once(self, *calls: Callable[[], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]

    def scored(self, model: str = "slow") -> int:
        """How many comments the encoder has been given, as Triton counts them: a moment after it has answered."""
        before, now = -1, 0
        while now != before:
            time.sleep(0.05)
            statistics = self.client.get_inference_statistics(model, as_json=True)["model_stats"]
            before, now = now, sum(int(s.get("inference_count", 0)) for s in statistics)
        return now

    def metric(self, name: str, model: str = "slow_cascade", **labels: str) -> float:
        with urllib.request.urlopen(self.server.metrics_url) as page:
            lines = page.read().decode().splitlines()
        wanted = {"model": model, **labels}
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"tritox_cascade_{name}{{") and all(f'{k}="{v}"' in line for k, v in wanted.items())
        ]
        return sum(found) if found else float("nan")

    def settled(self, name: str, value: float, model: str = "slow_cascade", **labels: str) -> float:
        """A metric, waited for: they are handed over once a second."""
        until = time.monotonic() + 5
        while (found := self.metric(name, model, **labels)) != value and time.monotonic() < until:
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def front(repository: Path) -> Iterator[Front]:
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield Front(running)
        end_at_once(running.pid)


class Under:
    """A call in a thread, so that the test can go on."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.seconds = 0.0
        self.thread = threading.Thread(target=self.run, args=(call,))
        self.thread.start()

    def run(self, call: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            self.result = call()
        except InferenceServerException as error:
            self.result = error
        self.seconds = time.monotonic() - began

    def wait(self) -> Any:
        self.thread.join(30)
        return self.result


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# --- what it answers


@pytest.mark.triton
def test_it_gives_the_encoders_scores_then_the_cached_ones(front: Front) -> None:
    texts = ["the map of the town", "you stupid idiot", "please add a better source " * 30]
    expected, cut, _ = ensemble(front, texts)
    scores, truncated, stages = front(texts, "toxicity_cascade", "1")
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert truncated == cut == [False, False, True]
    assert stages == [3, 3, 3]
    before = front.scored("toxicity_encoder")
    again, truncated, stages = front(texts[::-1], "toxicity_cascade", "1")
    assert np.array_equal(again, scores[::-1])  # to the bit
    assert truncated == cut[::-1] and stages == [0, 0, 0]
    assert front.scored("toxicity_encoder") == before


def ensemble(front: Front, texts: list[str | bytes]) -> tuple[np.ndarray, list[bool], list[int]]:
    rows = np.array([t.encode() if isinstance(t, str) else t for t in texts], object).reshape(-1, 1)
    tensor = grpcclient.InferInput("TEXT", list(rows.shape), "BYTES")
    tensor.set_data_from_numpy(rows)
    reply = front.client.infer("toxicity", [tensor])
    return reply.as_numpy("scores"), reply.as_numpy("truncated").ravel().tolist(), []


@pytest.mark.triton
def test_stages_answer_what_they_are_sure_of_in_their_order(front: Front) -> None:
    before = front.scored("toxicity_encoder")
    texts = ["many thanks", "you are welcome", "thanks, and welcome", "neither of the words"]
    scores, truncated, stages = front(texts, "toxicity_cascade", "1")
    assert stages == [1, 2, 1, 3]
    np.testing.assert_allclose(scores[:3, 0], [0.01, 0.95, 0.01])
    assert front.scored("toxicity_encoder") - before == 1
    assert front(["many thanks"], "toxicity_cascade", "1")[2] == [0]


@pytest.mark.triton
def test_versions_have_caches_of_their_own(front: Front) -> None:
    for _ in range(2):
        assert front(["thanks for version"], "toxicity_cascade", "1")[0][0, 0] == np.float32(0.01)
        assert front(["thanks for version"], "toxicity_cascade", "2")[0][0, 0] == np.float32(0.02)
    assert front(["thanks for version two"], "toxicity_cascade", "1")[2] == [1]
    assert front(["thanks for version two"], "toxicity_cascade", "2")[2] == [1]  # not the other's


@pytest.mark.triton
def test_texts_that_the_normalizer_makes_equal_are_one_comment(front: Front) -> None:
    before = front.scored("toxicity_encoder")
    plain, disguised, near = "you idiot of a map", "you \u0456di\u043et of a map", "you idiot of a map."
    scores, _, stages = front([plain, disguised, near], "toxicity_cascade", "1")
    assert stages == [3, 0, 3]  # "near" is another comment
    assert np.array_equal(scores[0], scores[1])
    assert front.scored("toxicity_encoder") - before == 2
    for _ in range(3):  # by its normalized text, then by its bytes
        again, _, stages = front([disguised], "toxicity_cascade", "1")
        assert stages == [0] and np.array_equal(again[0], scores[0])


@pytest.mark.triton
def test_what_differs_only_behind_the_cut_is_truncated_and_apart(front: Front) -> None:
    long = "a b c d e f g h " * 300
    first, truncated, _ = front([long + "x", long + "y"], "toxicity_cascade", "1")
    assert truncated == [True, True]
    scores, truncated, stages = front([long + "x", long + "z"], "toxicity_cascade", "1")
    assert truncated == [True, True] and stages == [0, 3]
    np.testing.assert_allclose(scores, first, atol=1e-5)


@pytest.mark.triton
def test_the_cache_can_be_switched_off_and_stays_bounded(front: Front) -> None:
    for _ in range(2):
        assert front(["a text that comes again"], "uncached_cascade")[2] == [1]
    before = front.scored()
    texts = [f"another text, number {i}" for i in range(400)]
    for start in range(0, 400, 8):
        front(texts[start : start + 8])
    assert front(texts[-3:])[2] == [0, 0, 0]
    assert front(texts[:3])[2] == [2, 2, 2]  # the oldest had to go
    assert front.scored() - before == 403
    until(lambda: front.metric("cache_bytes") > 10_000)  # they are published once a second
    assert front.metric("cache_bytes") <= 20_000 and front.metric("cache_entries") > 10
    assert front.settled("cache_bytes", front.metric("cache_bytes", "uncached_cascade"), "uncached_cascade") < 1000


# --- comments under way


@pytest.mark.triton
@pytest.mark.parametrize("model", ["slow_cascade", "uncached_cascade"])
def test_the_same_text_is_scored_once_in_a_batch_and_across_requests(front: Front, model: str) -> None:
    before, text = front.scored(), f"wait 0.4 {model}"
    calls = [lambda n=n: front([text] * n, model) for n in (3, 1, 2)]
    answers = front.at_once(*calls)
    assert front.scored() - before == 1
    stages = [stage for _, _, stages in answers for stage in stages]
    assert sorted(stages)[:-1] == [0] * 5 and sorted(stages)[-1] > 0
    assert len({row.tobytes() for scores, _, _ in answers for row in scores}) == 1


@pytest.mark.triton
def test_slow_comments_do_not_hold_up_what_is_known(front: Front) -> None:
    front(["a text that is known"])
    slow = [Under(lambda i=i: front([f"wait 1.5 {i}"])) for i in range(3)]
    until(lambda: front.metric("rows_in_flight") >= 3)
    began = time.monotonic()
    assert front(["a text that is known"])[2] == [0]
    assert front(["thanks, a new one"])[2] == [1]
    assert time.monotonic() - began < 1.0
    assert all(one.result is None for one in slow)  # still waiting
    assert [one.wait()[2] for one in slow] == [[2]] * 3
    assert max(one.seconds for one in slow) > 1.0


@pytest.mark.triton
def test_a_joined_batch_answers_its_known_rows_at_once(front: Front) -> None:
    front(["known already"])
    slow = Under(lambda: front(["known already", "wait 1.2 mixed", "thanks mixed"]))
    quick = [Under(lambda: front(["known already"])) for _ in range(4)]
    assert [one.wait()[2] for one in quick] == [[0]] * 4
    assert max(one.seconds for one in quick) < 1.0
    scores, _, stages = slow.wait()
    assert stages == [0, 2, 1]
    np.testing.assert_allclose(scores[:, 0], [0.013, 0.014, 0.0], atol=1e-6)


@pytest.mark.triton
def test_more_than_may_be_under_way_is_refused_at_once(front: Front) -> None:
    texts = [[f"wait 2.0 {i} {k}" for k in range(6)] for i in range(2)]
    slow = [Under(lambda i=i: front(texts[i])) for i in range(2)]
    until(lambda: front.metric("rows_in_flight") == 12)
    began = time.monotonic()
    with pytest.raises(
        InferenceServerException, match=r"12 comments are on their way .* brings 1 new .* at most 12"
    ) as e:
        front(["one more"])
    assert "UNAVAILABLE" in str(e.value.status())
    assert front(["thanks, still"])[2] == [1]
    assert time.monotonic() - began < 1
    assert front([texts[0][3]])[2] == [0]  # one that is under way brings nothing new
    assert [one.wait()[2] for one in slow] == [[2] * 6] * 2
    assert front(["one more"])[2] == [2]
    assert front.settled("rows_in_flight", 0) == 0


@pytest.mark.triton
def test_a_timeout_that_passes_in_the_queue_refuses_and_spares_the_encoder(front: Front) -> None:
    slow = [Under(lambda i=i: front([f"wait 2.5 deadline {i}{k}" for k in range(4)])) for i in range(2)]  # both calls
    until(lambda: front.metric("rows_in_flight") == 8)
    before = front.scored()
    gone = Under(lambda: front(["nobody waits for it"], client_timeout=0.2))
    with pytest.raises(InferenceServerException, match="timeout of 100 ms passed"):
        front(["too late"], timeout=100_000)
    assert isinstance(gone.wait(), InferenceServerException)
    for one in slow:
        one.wait()
    assert front.settled("rows_in_flight", 0) == 0
    assert front(["after all of them"])[2] == [2]
    assert front.scored() - before <= 9  # not the two that nobody waited for
    assert front.settled("refused_total", 1, reason="deadline") == 1
    assert front.settled("refused_total", 1, reason="cancelled") == 1


# --- errors


@pytest.mark.triton
def test_text_that_is_not_utf8_refuses_its_request_alone(front: Front) -> None:
    good = [Under(lambda i=i: front([f"good {i}", "thanks"], "uncached_cascade")) for i in range(4)]
    with pytest.raises(InferenceServerException, match=r"TEXT row 1 is not valid UTF-8: byte 0xff at offset 2"):
        front(["fine", b"ab\xff"], "uncached_cascade")
    assert all(one.wait()[0].shape == (2, 2) for one in good)


@pytest.mark.triton
def test_an_encoder_that_fails_refuses_what_needed_it_and_is_asked_again(front: Front) -> None:
    front(["known before it"])
    before = front.scored()
    with pytest.raises(InferenceServerException, match="slow failed on a comment: it failed on purpose"):
        front(["known before it", "fail here"])
    assert front(["known before it"])[2] == [0]
    with pytest.raises(InferenceServerException, match="on purpose"):  # the error was not cached
        front(["fail here"])
    assert front(["not here"])[2] == [2]
    assert front.settled("encoder_failures_total", 2) == 2
    assert front.scored() - before >= 1


@pytest.mark.triton
def test_an_encoder_that_is_not_there_leaves_the_stages(front: Front) -> None:
    with pytest.raises(InferenceServerException, match="slow failed on a comment"):
        front(["it needs the encoder", "thanks"], "absent_cascade")
    assert front(["thanks"], "absent_cascade")[2] == [0]  # answered before, and kept
    assert front(["thanks again"], "absent_cascade")[2] == [1]
    assert front.server.is_running()


@pytest.mark.triton
def test_a_stage_that_fails_leaves_its_comments_to_the_encoder(front: Front) -> None:
    assert front(["break the stage", "thanks a lot indeed"])[2] == [2, 2]
    assert front.settled("stage_failures_total", 1) == 1


# --- metrics


@pytest.mark.triton
def test_metrics_count_what_happened(front: Front) -> None:
    own = {"model": "toxicity_cascade", "version": "2"}
    names = ("comments_total", "cache_hits_total", "cache_misses_total", "coalesced_total", "truncated_total")
    time.sleep(1.2)  # what earlier tests did has been handed over
    before = {name: front.metric(name, **own) for name in names}
    early = front.metric("stage_comments_total", stage="thanks", **own)
    low = front.metric("score_bucket", label="toxic", le="0.05", **own)
    front(["thanks metrics", "thanks metrics", "a new metric", "word " * 200], "toxicity_cascade", "2")
    front(["thanks metrics", "a new metric"], "toxicity_cascade", "2")
    wanted = dict(zip(names, (6, 2, 3, 1, 1), strict=True))
    for name, more in wanted.items():
        assert front.settled(name, before[name] + more, **own) == before[name] + more, name
    assert front.metric("stage_comments_total", stage="thanks", **own) == np.nan_to_num(early) + 1
    assert front.metric("stage_comments_total", stage="encoder", **own) >= 2
    assert front.metric("score_bucket", label="toxic", le="0.05", **own) >= np.nan_to_num(low) + 3
    count = front.metric("score_count", label="toxic", **own)
    assert front.metric("score_bucket", label="toxic", le="+Inf", **own) == count
    assert front.metric("encoder_us_total", **own) > 0
    assert front.metric("wait_us_total", **own) > 0


@pytest.mark.triton
def test_no_request_waits_for_another_one_to_wake_the_batcher(front: Front) -> None:
    def one(text: str) -> float:
        began = time.monotonic()
        front([text], "uncached_cascade")
        return time.monotonic() - began

    slow = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):  # a busy machine may stall once
            seconds = [t for i in range(60) for t in pool.map(one, [f"{i} {k}" for k in range(3)])]
            slow.append(np.mean(np.array(seconds) > 0.4))
            if slow[-1] < 0.01:
                return
    raise AssertionError(f"shares that took over 0.4 s: {slow}")  # with a default_queue_policy, one in ten took 500 ms


@pytest.mark.triton
def test_many_at_once_all_get_their_own_answers(front: Front) -> None:
    """Senders, calls and metrics from several threads at once: no answer is lost, and none is another's."""
    rng = random.Random(3)

    def some(seed: int) -> None:
        for i in range(40):
            texts = [rng.choice(["thanks ", "", "map "]) + "x" * rng.randint(1, 60) for _ in range(1 + (seed + i) % 5)]
            scores, _, stages = front(texts, "uncached_cascade")
            np.testing.assert_allclose(scores[:, 0], [len(text) / 1000 for text in texts], atol=1e-6)
            assert set(stages) <= {0, 1}

    front.at_once(*(lambda seed=seed: some(seed) for seed in range(8)))
    assert front.settled("rows_in_flight", 0, "uncached_cascade") == 0


# --- its parts, without a server


def template(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TEMPLATES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cache_counts_the_bytes_it_takes() -> None:
    cache = template("cascade_cache").CommentCache(10**9)
    tracemalloc.start()
    for i in range(20_000):
        cache.put(f"comment {i} " + "\u0456" * (i % 90), bytes(25) + b"%d" % i)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= cache.used_bytes <= 1.5 * taken


def test_the_cache_drops_the_longest_unused_and_nothing_for_a_flood() -> None:
    cache = template("cascade_cache").CommentCache(40_000)
    for i in range(1000):
        cache.put(f"text {i}", b"v%d" % i)
        assert cache.get("text 0") == b"v0"  # used each time, so kept
        assert cache.used_bytes <= 40_000
    assert cache.get("text 999") == b"v999" and cache.get("text 1") is None
    entries = len(cache)
    cache.put("x" * 3000, b"v")
    assert cache.get("x" * 3000) is None and len(cache) == entries
    assert cache.get(b"text 999") is None  # bytes are another key than text


def rows(queue: ModuleType, costs: list[int], name: str = "r") -> list[Any]:
    return [queue.Row(f"{name}{i}", b"", cost, 0.0) for i, cost in enumerate(costs)]


def test_batches_hold_comments_of_like_length_within_the_budget() -> None:
    module = template("cascade_queue")
    queue, rng = module.FairQueue(), random.Random(1)
    costs = [rng.choice([10, 12, 300, 320]) for _ in range(100)]
    queue.add(rows(module, costs))
    seen: list[int] = []
    while queue:
        batch = [row.cost for row in queue.take(8, 1000)]
        assert len(batch) <= 8 and len(batch) * max(batch) <= 1000 and batch == sorted(batch)
        assert max(batch) - min(batch) < 100 or len(queue) < 32
        seen += batch
    assert sorted(seen) == sorted(costs)
    queue.add(rows(module, [5000]))
    assert len(queue.take(8, 1000)) == 1  # more than the budget by itself, still served


def test_a_large_request_does_not_hold_up_a_small_one_nor_the_reverse() -> None:
    module = template("cascade_queue")
    queue = module.FairQueue()
    queue.add(rows(module, [500] * 64, "large"))
    queue.take(1, 500)
    queue.add(rows(module, [500], "small"))
    assert "small0" in [row.key for _ in range(3) for row in queue.take(1, 500)]
    for i in range(200):  # small ones keep coming
        queue.add(rows(module, [500], f"s{i}"))
        queue.take(1, 500)
        queue.take(1, 500)
    assert not [entry for entry in queue.heap if entry[2].key.startswith("large")]


def test_the_config_joins_requests_and_has_the_ensembles_parameters() -> None:
    config = text_format.Parse(cascade(slow_settings("m"), 3), pb.ModelConfig())
    assert config.name == "m_cascade" and list(config.version_policy.specific.versions) == [3]
    assert [group.count for group in config.instance_group] == [1]
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")  # it brings stalls of 500 ms
    assert json.loads(config.parameters["labels"].string_value) == ["a", "b"]
