"""The gateway in front of a real Triton, asked over real HTTP; published clients of Perspective API ask it, too."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import LABELS, REPOSITORY, ROOT, end_at_once

from client.policy import PRESETS, Policy
from client.records import Records
from loadtest.contenders import Gateway as Contender
from loadtest.contenders import SharedServer, Tritox
from serve.gateway import languages, perspective
from serve.gateway.__main__ import http_server, listen
from serve.gateway.__main__ import main as gateway_main
from serve.gateway.app import Settings, create
from serve.gateway.feedback import Store
from serve.gateway.feedback import main as export
from serve.gateway.gate import InvalidKeys, Key, Keys
from serve.gateway.requests import relaxed
from serve.server import TritonServer

ORIGINAL = "https://commentanalyzer.googleapis.com"
SECRET = "qwertz this comment must never be written anywhere uiop"
INSULT = "You are such an idiot, nobody wants to read this."
ANALYZE = "/v1alpha1/comments:analyze"
SUGGEST = "/v1alpha1/comments:suggestscore"
MAX_BYTES = 200_000


@dataclass
class Answer:
    code: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert error["code"] == self.code
        return error


class Gateway:
    """One in a thread, on a free port."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.listening = listen("127.0.0.1", 0)
        self.port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = http_server(create(settings))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)

    def __enter__(self) -> Gateway:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listening.close()

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Answer:
        """:param body: bytes as they are, anything else as JSON; None asks with GET."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def analyze(self, text: str | None = INSULT, attributes: Any = None, **fields: Any) -> Answer:
        asked = {"TOXICITY": {}} if attributes is None else attributes
        return self.ask(ANALYZE, {"comment": {"text": text}, "requestedAttributes": asked, **fields})


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The shipped model, and a second ensemble of its parts, whose calls can be told from the first one's."""
    repository = tmp_path_factory.mktemp("gateway") / "models"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(repository / "toxicity", repository / "toxicity_second")
    config = repository / "toxicity_second/config.pbtxt"
    config.write_text(config.read_text().replace('name: "toxicity"', 'name: "toxicity_second"', 1))
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, model_control=True) as server:
        yield server
        end_at_once(server.pid)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(str(tmp_path_factory.mktemp("feedback") / "feedback.sqlite")) as store:
        yield store


@pytest.fixture(scope="module")
def gateway(triton: TritonServer, store: Store) -> Iterator[Gateway]:
    settings = Settings(
        triton.grpc_url,
        timeout=10,
        feedback=store,
        max_bytes=MAX_BYTES,
        policies={name: Policy.read(name) for name in PRESETS},
    )
    with Gateway(settings) as gateway:
        yield gateway


# --- analyze


@pytest.mark.triton
def test_the_first_example_of_perspectives_guide_is_answered_as_there(gateway: Gateway) -> None:
    body = b"""{comment: {text: "what kind of idiot name is foo?"},
       languages: ["en"],
       requestedAttributes: {TOXICITY:{}} }"""
    answer = gateway.ask(f"{ANALYZE}?key=YOUR_KEY_HERE", body)
    assert answer.code == 200
    value = answer.json["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
    assert 0.5 < value < 1
    score = {"value": value, "type": "PROBABILITY"}
    assert answer.json == {
        "attributeScores": {
            "TOXICITY": {"spanScores": [{"begin": 0, "end": 31, "score": score}], "summaryScore": score}
        },
        "languages": ["en"],
        "detectedLanguages": ["en"],
    }


@pytest.mark.triton
def test_every_attribute_is_the_score_of_its_label(gateway: Gateway) -> None:
    labels = {
        "TOXICITY": "toxic",
        "SEVERE_TOXICITY": "severe_toxic",
        "IDENTITY_ATTACK": "identity_hate",
        "INSULT": "insult",
        "PROFANITY": "obscene",
        "THREAT": "threat",
    }
    both = {name: {} for label in labels for name in (label, f"{label}_EXPERIMENTAL")}
    found = gateway.analyze(attributes=both, clientToken="a token", doNotStore=True).json
    scores = gateway.ask("/predict", {"text": INSULT}).json["results"][0]["scores"]
    assert len(set(scores.values())) == len(LABELS)
    for name, label in labels.items():
        for attribute in (name, f"{name}_EXPERIMENTAL"):
            value = found["attributeScores"][attribute]["summaryScore"]["value"]
            assert value == pytest.approx(scores[label], abs=1e-6)
    assert found["clientToken"] == "a token"


@pytest.mark.triton
def test_scores_below_a_threshold_are_left_out(gateway: Gateway) -> None:
    asked = {"INSULT": {"scoreThreshold": 0.3, "scoreType": "PROBABILITY"}, "THREAT": {"scoreThreshold": 0.3}}
    assert list(gateway.analyze(attributes=asked).json["attributeScores"]) == ["INSULT"]


@pytest.mark.triton
def test_ends_of_spans_count_utf16_units_of_the_text(gateway: Gateway) -> None:
    text = "\U0001f600 idiot \U0001f600"
    (span,) = gateway.analyze(text).json["attributeScores"]["TOXICITY"]["spanScores"]
    assert (span["begin"], span["end"]) == (0, len(text.encode("utf-16-le")) // 2) == (0, 11)
    units = perspective.utf16(text)
    assert [units(i) for i in range(len(text) + 1)] == [0, 2, 3, 4, 5, 6, 7, 8, 9, 11]


@pytest.mark.triton
def test_span_annotations_are_sentences_with_scores_of_their_own(gateway: Gateway) -> None:
    text = "\U0001f600 Hello there. You idiot!"
    scores = gateway.analyze(text, {"INSULT": {}}, spanAnnotations=True).json["attributeScores"]["INSULT"]
    friendly, rude = scores["spanScores"]
    assert (friendly["begin"], friendly["end"]) == (0, 15)
    assert (rude["begin"], rude["end"]) == (16, 26), "in UTF-16 units"
    assert friendly["score"]["value"] < 0.1 < 0.8 < rude["score"]["value"]
    scores = gateway.analyze(INSULT, spanAnnotations=True).json["attributeScores"]["TOXICITY"]
    assert scores["spanScores"] == [{"begin": 0, "end": len(INSULT), "score": scores["summaryScore"]}]


@pytest.mark.triton
def test_spans_of_the_plain_api_are_words(gateway: Gateway) -> None:
    result = gateway.ask("/predict", {"text": "\U0001f600 you idiot", "spans": True}).json["results"][0]
    (span,) = result["spans"]
    assert (span["begin"], span["end"]) == (7, 12), "in UTF-16 units"
    assert list(span["scores"]) == list(LABELS) and span["scores"]["insult"] > 0.5
    assert "spans" not in gateway.ask("/predict", {"text": "you idiot"}).json["results"][0]
    many = gateway.ask("/predict", {"texts": ["a"] * 9, "spans": True})
    assert many.code == 400 and "at most 8" in many.error["message"]


@pytest.mark.triton
@pytest.mark.parametrize(
    ("body", "message", "detail"),
    [
        ({}, "Comment must be non-empty.", {"errorType": "COMMENT_EMPTY"}),
        ({"comment": None}, "Comment must be non-empty.", {"errorType": "COMMENT_EMPTY"}),
        ({"comment": {"text": ""}}, "Comment must be non-empty.", {"errorType": "COMMENT_EMPTY"}),
        ({"comment": {"text": " \n"}}, "Comment must be non-empty.", {"errorType": "COMMENT_EMPTY"}),
        (
            {"comment": {"text": "é" * 10241}, "requestedAttributes": {"TOXICITY": {}}},
            "Comment text was too many bytes. Value (20482) exceeded limit (20480).",
            {"errorType": "COMMENT_TOO_LONG"},
        ),
        ({"comment": {"text": "a", "type": "HTML"}}, "Currently, only 'PLAIN_TEXT' comments are supported", None),
        ({"comment": {"text": "a"}}, "Missing requested_attributes", None),
        ({"comment": {"text": "a"}, "requestedAttributes": {}}, "Missing requested_attributes", None),
        (
            {"comment": {"text": "a"}, "requestedAttributes": {"TOXICITY": {}, "FLIRTATION": {}}},
            "Unknown requested attribute: FLIRTATION",
            None,
        ),
        (
            {"comment": {"text": "a"}, "requestedAttributes": {"INSULT": {"scoreType": "PERCENTILE"}}},
            "Requested score type PERCENTILE is not supported by attribute INSULT",
            None,
        ),
        (
            {"comment": {"text": "a"}, "requestedAttributes": {"INSULT": {}}, "languages": ["en", "it", "fr-FR"]},
            "Attribute INSULT does not support request languages: it, fr-FR",
            {
                "errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
                "languageNotSupportedByAttributeError": {
                    "requestedLanguages": ["it", "fr-FR"],
                    "attribute": "INSULT",
                },
            },
        ),
        (
            {"comment": {"text": "Ты дурак"}, "requestedAttributes": {"INSULT": {}}},
            "Attribute INSULT does not support request languages: ru",
            {
                "errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
                "languageNotSupportedByAttributeError": {"detectedLanguages": ["ru"], "attribute": "INSULT"},
            },
        ),
        (
            {"comment": {"text": "a"}, "context": {"entries": [], "articleAndParentComment": {}}},
            "Context can have either entries or article_and_parent_comment, but both fields were populated.",
            None,
        ),
        ({"comment": {"text": 3}}, "Invalid value at 'comment.text': Input should be a valid string", "BadRequest"),
        (
            {"comment": {"text": "a"}, "attributes": {}},
            'Invalid JSON payload received. Unknown name "attributes": Cannot find field.',
            "BadRequest",
        ),
    ],
)
def test_requests_are_refused_as_perspective_refuses_them(
    gateway: Gateway, body: Any, message: str, detail: Any
) -> None:
    answer = gateway.ask(ANALYZE, body)
    assert answer.code == 400
    assert (answer.error["message"], answer.error["status"]) == (message, "INVALID_ARGUMENT")
    if detail is None:
        assert "details" not in answer.error
    elif isinstance(detail, dict):
        kind = "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"
        assert answer.error["details"] == [{"@type": kind, **detail}]
    else:
        assert answer.error["details"][0]["@type"] == f"type.googleapis.com/google.rpc.{detail}"


@pytest.mark.triton
def test_unsupported_attributes_are_dropped_where_the_request_says_so(gateway: Gateway) -> None:
    asked = {"FLIRTATION": {}, "INSULT": {}}
    answer = gateway.analyze(attributes=asked, dropUnsupportedAttributes=True)
    assert list(answer.json["attributeScores"]) == ["INSULT"]
    russian = gateway.analyze("Ты дурак", asked, dropUnsupportedAttributes=True)
    assert (russian.code, russian.json["attributeScores"], russian.json["languages"]) == (200, {}, ["ru"])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("hello", "en"),
        ("12345 !? \U0001f600", "en"),
        ("Du bist ein Idiot, größer", "en"),  # the script does not tell
        ("Привет, как дела?", "ru"),
        ("уоu аrе аn іdіоt", "en"),  # disguised with look-alikes
        ("東京は大きいです", "ja"),
        ("你好世界", "zh"),
        ("안녕하세요", "ko"),
        ("مرحبا بالعالم", "ar"),
        ("नमस्ते दुनिया", "hi"),
    ],
)
def test_a_script_tells_the_language(text: str, language: str) -> None:
    assert languages.detect(text, "en") == language


# --- hostile bodies


def hostile() -> dict[str, bytes]:
    good = b'{"comment": {"text": "%s"}, "requestedAttributes": {"TOXICITY": {}}}'
    return {
        "empty": b"",
        "no JSON": b"comment=hello",
        "null": b"null",
        "list": b"[]",
        "deep list": b"[" * 50_000,
        "deep object": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        "deep in a field": b'{"context": {"entries": ' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
        "bare names, deep": b"{a:" * 30_000,
        "invalid UTF-8": good % b"\xff\xfe idiot",
        "cut UTF-8": good % b"\xf0\x9f\x98",
        "lone surrogate": good % b"\\ud83d",
        "surrogates turned round": good % b"\\ude00\\ud83d",
        "NaN": b'{"comment": {"text": "a"}, "requestedAttributes": {"INSULT": {"scoreThreshold": NaN}}}',
        "huge number": b'{"comment": {"text": "a"}, "requestedAttributes": {"INSULT": {"scoreThreshold": 1e999}}}',
        "many attributes": b'{"comment": {"text": "a"}, "requestedAttributes": {%s}}'
        % b",".join(b'"A%d": {}' % i for i in range(10_000)),
        "wrong types": b'{"comment": "text", "requestedAttributes": [], "languages": "en", "doNotStore": 1}',
        "open quotes": b'{"comment": {"text": ' + b"'\"" * 50_000,
        "backslashes": b'{"comment": {"text": "' + b"\\" * 100_001,
        "10 MB": b'{"comment": {"text": "' + b"a" * 10_000_000 + b'"}}',
        "a compressed body": gzip.compress(b"{}"),
    }


@pytest.mark.triton
@pytest.mark.parametrize("path", [ANALYZE, SUGGEST, "/predict", "/models/switch"])
def test_hostile_bodies_are_refused_and_nothing_dies(gateway: Gateway, path: str) -> None:
    for name, body in hostile().items():
        start = time.monotonic()
        try:
            answer = gateway.ask(path, body)
        except (ConnectionError, urllib.error.URLError):
            assert name == "10 MB"  # refused before it was sent
            continue
        assert 400 <= answer.code < 500, name
        assert answer.error["message"], name
        assert time.monotonic() - start < 10, name
    assert gateway.analyze().code == 200


@pytest.mark.triton
def test_a_long_body_is_refused_while_it_comes(gateway: Gateway) -> None:
    """Without a length, in chunks; what is too much is not read."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        head = f"POST {ANALYZE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        sent, reply = 0, b""
        connection.settimeout(0.2)
        while sent < 100 * MAX_BYTES and not reply:
            try:
                connection.sendall(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")
                sent += 0x10000
                reply = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
        assert sent < 20 * MAX_BYTES
        if reply:
            assert reply.startswith(b"HTTP/1.1 413 ")
    assert gateway.analyze().code == 200


@pytest.mark.triton
def test_control_characters_are_texts_too(gateway: Gateway) -> None:
    text = "you\x00 idiot\x1b[2J\u2028\ufeff"
    answer = gateway.analyze(text, clientToken="\u0000\u2028")
    assert (answer.code, answer.json["clientToken"]) == (200, "\u0000\u2028")


@pytest.mark.parametrize(
    ("loose", "strict"),
    [
        ("{a: 1, b : {c:'x'},}", '{"a": 1, "b" : {"c":"x"}}'),
        ("""{"a: 1,}": 'say "hi", it\\'s'}""", '{"a: 1,}": "say \\"hi\\", it\'s"}'),
        ('{"a": [1, 2, ], b: true}', '{"a": [1, 2 ], "b": true}'),
    ],
)
def test_loose_json_is_read_as_google_reads_it(loose: str, strict: str) -> None:
    assert json.loads(relaxed(loose)) == json.loads(strict)


@pytest.mark.parametrize(
    "pumped", ['"' + '\\"' * 40_000, "'" + "\\'" * 40_000, "a" * 80_000, "a " * 40_000, "," * 80_000]
)
def test_a_body_beyond_repair_takes_no_time(pumped: str) -> None:
    """Each of these kept the gateway, which has one thread, busy for minutes."""
    start = time.process_time()
    assert relaxed(pumped) == pumped
    assert time.process_time() - start < 2


@pytest.mark.triton
def test_large_bodies_are_not_repaired(gateway: Gateway) -> None:
    assert gateway.ask("/predict", b"{text: 'one',}").code == 200
    loose = b"{text: 'one'," + b" " * 100_000 + b"}"
    assert "Invalid JSON payload" in gateway.ask("/predict", loose).error["message"]


# --- suggested scores


def suggestion(text: str = "Get busy living", value: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {
        "comment": {"text": text},
        "attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}},
        "communityId": "/forum/movies",
        "clientToken": "comment-53922",
        **fields,
    }


@pytest.mark.triton
def test_suggested_scores_are_on_disk_when_they_are_answered(gateway: Gateway, store: Store) -> None:
    before = len(store.rows())
    answer = gateway.ask(SUGGEST, suggestion("Get busy \x00 living", languages=["en"], sessionId="7"))
    assert (answer.code, answer.json) == (200, {"clientToken": "comment-53922"})
    with sqlite3.connect(store.where) as other:  # another process would see the same
        query = "SELECT text, scores, languages, session_id, community_id, model, model_version FROM suggested_scores"
        rows = other.execute(query).fetchall()
    assert len(rows) == before + 1
    assert rows[-1] == ("Get busy \ufffd living", '{"TOXICITY": 0.0}', '["en"]', "7", "/forum/movies", "toxicity", "1")
    assert os.stat(store.where).st_mode & 0o077 == 0


@pytest.mark.triton
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "Missing attribute_scores"),
        ({"TOXICITY": {}}, "Attribute TOXICITY has neither a summary_score nor span_scores"),
        ({"SPAM": {"summaryScore": {"value": 1}}}, "Unknown requested attribute: SPAM"),
        ({"THREAT": {"summaryScore": {}}}, "The score of THREAT must be a probability between 0 and 1"),
        ({"THREAT": {"summaryScore": {"value": 1.5}}}, "The score of THREAT must be a probability between 0 and 1"),
        (
            {"THREAT": {"spanScores": [{"begin": 4, "end": 40, "score": {"value": 1}}]}},
            "A span of THREAT must have 0 <= begin < end <= 15",
        ),
        ({"THREAT": {"spanScores": [{"begin": 4, "end": 9}]}}, "A span of THREAT has no score"),
    ],
)
def test_suggestions_that_say_nothing_are_refused(gateway: Gateway, store: Store, scores: Any, message: str) -> None:
    before = len(store.rows())
    answer = gateway.ask(SUGGEST, suggestion(attributeScores=scores))
    assert (answer.code, answer.error["message"]) == (400, message)
    assert len(store.rows()) == before


@pytest.mark.triton
def test_no_text_is_written_anywhere(
    gateway: Gateway, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither where it was not to be stored, nor in logs, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    key = "?key=a-secret-key"
    assert gateway.ask(SUGGEST + key, suggestion(SECRET, doNotStore=True)).code == 200
    assert gateway.ask(SUGGEST + key, suggestion(SECRET, attributeScores={"SPAM": {}})).code == 400
    assert gateway.ask(ANALYZE + key, {"comment": {"text": SECRET}, "requestedAttributes": {"INSULT": {}}}).code == 200
    assert gateway.ask(ANALYZE + key, {"comment": {"text": SECRET}, SECRET: 1}).code == 400
    assert gateway.ask(ANALYZE + key, json.dumps({"comment": {"text": SECRET}}).encode()[:-4]).code == 400
    assert gateway.ask("/predict" + key, {"texts": [SECRET, 3]}).code == 400
    assert gateway.ask("/predict" + key, {"texts": [SECRET, "b"], "policy": "strict"}).code == 200
    assert gateway.ask(f"/{SECRET.replace(' ', '%20')}{key}").code == 404
    folder = Path(store.where).parent
    written = b"".join(file.read_bytes() for file in folder.iterdir())
    logged = caplog.text + "".join(capfd.readouterr())
    assert logged.count("POST /v1alpha1/comments:analyze") == 3  # so that there was something to look at
    for part in ("qwertz", "uiop", "a-secret-key"):
        assert part.encode() not in written
        assert part not in logged
    assert b"suggested_scores" in written


@pytest.mark.triton
def test_the_export_is_a_file_to_train_on(
    triton: TritonServer, gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.config import DataConfig
    from train.data import _read as read_rows
    from train.data import format_of

    path = tmp_path / "own.sqlite"
    with Store(str(path)) as own, Gateway(Settings(triton.grpc_url, timeout=10, feedback=own)) as other:
        tricky = 'He said "no", and\nleft; =1+1'
        for body in (
            suggestion(tricky, 0.1),
            suggestion(INSULT, 0.9),
            suggestion(INSULT, 1.0),
            suggestion(INSULT, attributeScores={"INSULT": {"summaryScore": {"value": 1}}}),
        ):
            assert other.ask(SUGGEST, body).code == 200
    out = tmp_path / "train.csv"
    assert export(["--store", str(path), "--out", str(out)]) == 0
    assert "1 comments; 1 left out, since nobody suggested a score of some label" in capsys.readouterr().out
    assert export(["--store", str(path), "--out", str(out), "--triton", triton.grpc_url]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["comment_text"] for row in rows] == [tricky, INSULT]
    assert [rows[0][label] for label in LABELS] == ["0"] * 6
    assert (rows[1]["toxic"], rows[1]["insult"], rows[1]["threat"]) == ("1", "1", "0")
    config = DataConfig(format="jigsaw")
    found = read_rows(out, format_of(config), config.threshold)
    assert found.texts == [tricky, INSULT]
    assert found.labels[1].tolist() == [float(rows[1][label]) for label in LABELS]


@pytest.mark.triton
def test_postgresql_keeps_suggestions_too(triton: TritonServer, tmp_path: Path) -> None:
    """On a real server, which is restarted in between."""
    pytest.importorskip("psycopg")
    folders = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ.get("PATH", "")]
    binaries = {name: shutil.which(name, path=os.pathsep.join(folders)) for name in ("initdb", "pg_ctl")}
    if not all(binaries.values()):
        pytest.skip("no PostgreSQL server here: initdb and pg_ctl are not on PATH")
    # it does not run as root
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    if user:
        os.chown(folder, 65534, 65534)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(
            [*user, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
        )

    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [str(binaries["pg_ctl"]), "-D", f"{folder}/data", "-l", f"{folder}/log", "-w"]
    try:
        run(str(binaries["initdb"]), "-D", f"{folder}/data", "-U", "postgres", "--auth=trust", "--no-sync")
        run(*control, "-o", options, "start")
        address = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        with (
            Store(address) as store,
            Records(address, "k" * 16, keep_text=True) as records,
            Gateway(Settings(triton.grpc_url, timeout=10, feedback=store, records=records)) as gateway,
        ):
            assert gateway.ask(SUGGEST, suggestion("one \x00")).code == 200
            assert gateway.ask("/predict", {"text": "one \x00"}).code == 200
            run(*control, "-m", "immediate", "stop")
            refused = gateway.ask(SUGGEST, suggestion("lost"))
            assert (refused.code, refused.error["status"], "retry-after" in refused.headers) == (
                503,
                "UNAVAILABLE",
                True,
            )
            assert gateway.ask("/predict", {"text": "not recorded"}).error["status"] == "UNAVAILABLE"
            run(*control, "-o", options, "start")
            assert gateway.ask(SUGGEST, suggestion("two")).code == 200
            assert [row["text"] for row in store.rows()] == ["one \ufffd", "two"]
            assert gateway.ask("/predict", {"text": "two"}).code == 200
            assert [found.text for found in records.rows()] == ["one \ufffd", "two"]
            import psycopg

            with psycopg.connect(address, autocommit=True) as connection:
                for command in ("UPDATE decisions SET text = ''", "DELETE FROM decisions", "TRUNCATE decisions"):
                    with pytest.raises(psycopg.Error, match="append-only"):
                        connection.execute(command)
    finally:
        if (folder / "data/postmaster.pid").exists():
            run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


# --- decision records


@pytest.mark.triton
def test_decisions_are_recorded_before_they_are_answered(triton: TritonServer, tmp_path: Path) -> None:
    policies = {name: Policy.read(name) for name in PRESETS}
    with (
        Records(str(tmp_path / "d.sqlite"), "k" * 16) as records,
        Gateway(Settings(triton.grpc_url, timeout=10, records=records, policies=policies)) as gateway,
    ):
        asked = {"texts": [INSULT, "Thank you"], "policy": "standard"}
        answer = gateway.ask("/predict", asked, {"X-Request-Id": "appeal-1"})
        assert answer.headers["x-request-id"] == "appeal-1"
        first, second = records.rows()
        assert first.request_id == second.request_id == "appeal-1"
        assert first.text_hash == records.hash(INSULT) and first.text is None
        (predicted, _) = answer.json["results"]
        assert (first.scores, first.flagged) == (predicted["scores"], predicted["flagged"])
        assert {"action": first.action, "rule": first.rule, "policy": first.policy} == predicted["decision"]
        assert (first.model, first.model_version, first.release) == ("toxicity", "1", "1.0.0")
        normalizer = triton.repository / "toxicity_tokenizer/1/normalizer.py"
        assert hashlib.sha256(normalizer.read_bytes()).hexdigest().startswith(first.normalizer) and first.normalizer
        analyzed = gateway.ask(ANALYZE, {"comment": {"text": INSULT}, "requestedAttributes": {"TOXICITY": {}}})
        third = list(records.rows())[2]
        assert third.request_id == analyzed.headers["x-request-id"] and len(third.request_id) == 32
        assert third.policy is None and third.thresholds.keys() == third.scores.keys()
        records.close()
        assert gateway.ask("/predict", {"text": "nobody would know"}).code == 503


# --- who may ask, and how often


@pytest.fixture(scope="module")
def guarded(triton: TritonServer) -> Iterator[Gateway]:
    keys = {
        "a-key-of-site-a": Key("site_a"),
        "a-slow-key-here": Key("slow", rate=2.0),
        "the-admins-own-key": Key("boss", admin=True),
    }
    settings = Settings(triton.grpc_url, timeout=10, keys=Keys(keys), cors=["https://forum.example"])
    with Gateway(settings) as gateway:
        yield gateway


@pytest.mark.triton
def test_a_key_comes_in_the_query_or_a_header(guarded: Gateway) -> None:
    body = {"comment": {"text": "hello"}, "requestedAttributes": {"TOXICITY": {}}}
    key = "a-key-of-site-a"
    assert guarded.ask(f"{ANALYZE}?alt=json&key={key}", body).code == 200
    assert guarded.ask(ANALYZE, body, {"X-Goog-Api-Key": key}).code == 200
    assert guarded.ask(ANALYZE, body, {"Authorization": f"Bearer {key}"}).code == 200
    wrong = guarded.ask(f"{ANALYZE}?key=wrong", body)
    assert (wrong.code, wrong.error["message"]) == (400, "API key not valid. Please pass a valid API key.")
    assert wrong.error["details"][0]["reason"] == "API_KEY_INVALID"
    none = guarded.ask(ANALYZE, body)
    assert (none.code, none.error["status"]) == (403, "PERMISSION_DENIED")
    for path in ("/models", "/policies", "/predict"):
        assert guarded.ask(path).code == 403
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/$discovery/rest?version=v1alpha1"):
        assert guarded.ask(path).code == 200


@pytest.mark.triton
def test_a_key_above_its_rate_is_told_to_wait(guarded: Gateway) -> None:
    answers = [guarded.ask(f"{ANALYZE}?key=a-slow-key-here", {"comment": {"text": "hi"}}) for _ in range(12)]
    codes = [answer.code for answer in answers]
    assert codes[0] == 400  # the request has no attributes, but it came through
    limited = answers[codes.index(429)]
    assert limited.error["status"] == "RESOURCE_EXHAUSTED"
    assert limited.error["message"].startswith("Quota exceeded for quota metric 'Analysis requests (AnalyzeComment)'")
    assert limited.error["details"][0]["reason"] == "RATE_LIMIT_EXCEEDED"
    assert int(limited.headers["retry-after"]) == 1
    assert guarded.ask(f"{ANALYZE}?key=a-key-of-site-a", {"comment": {"text": "hi"}}).code == 400  # others are not
    assert 'rate_limited_total{key="slow"}' in guarded.ask("/metrics").body.decode()
    key = Key("k", rate=2.0)
    assert [key.wait_s(now) for now in (0.0, 0.0, 0.0, 0.5, 0.5, 10.0, 10.0, 10.0)] == [0, 0, 0.5, 0, 0.5, 0, 0, 0.5]


@pytest.mark.triton
def test_only_an_admins_key_switches_models(guarded: Gateway) -> None:
    body = {"model": "toxicity"}
    refused = guarded.ask("/models/switch?key=a-key-of-site-a", body)
    assert (refused.code, refused.error["status"]) == (403, "PERMISSION_DENIED")
    assert guarded.ask("/models/switch?key=the-admins-own-key", body).json["active"] == "toxicity"


@pytest.mark.triton
def test_pages_of_named_origins_may_call(guarded: Gateway, gateway: Gateway) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    friend = guarded.ask(ANALYZE, headers={"Origin": "https://forum.example", **asked}, method="OPTIONS")
    assert (friend.code, friend.headers["access-control-allow-origin"]) == (200, "https://forum.example")
    for stranger in (
        guarded.ask(ANALYZE, headers={"Origin": "https://evil.example", **asked}, method="OPTIONS"),
        gateway.ask(ANALYZE, headers={"Origin": "https://forum.example", **asked}, method="OPTIONS"),
    ):
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.triton
def test_without_keys_other_names_and_pages_stay_out(gateway: Gateway) -> None:
    """A page in a browser of this machine may have its own name point here, or post a form."""
    assert gateway.ask("/models", headers={"Host": "evil.example"}).code == 403
    assert gateway.ask("/models", headers={"Host": f"localhost:{gateway.port}"}).code == 200
    form = gateway.ask("/models/switch", b'{"model": "toxicity_second"}', {"Content-Type": "text/plain"})
    assert (form.code, gateway.ask("/models").json["active"]) == (415, "toxicity")


def test_without_keys_it_listens_on_loopback_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITOX_GATEWAY_KEYS", raising=False)
    assert gateway_main(["--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--host 0.0.0.0 lets other machines in, and there are no keys" in capsys.readouterr().err


def test_keys_are_read_from_a_file_and_a_list(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nabcdefgh1 name=site_a rate=2.5\n\nabcdefgh2 admin  # the boss\n")
    keys = Keys.read(file, "abcdefgh3, abcdefgh4", rate=7)
    found = [keys.get(f"abcdefgh{i}") for i in (1, 2, 3, 4)]
    assert [(k.name, k.rate, k.admin) for k in found if k] == [
        ("site_a", 2.5, False),
        ("key4", 7, True),
        ("key5", 7, False),
        ("key6", 7, False),
    ]
    assert keys.get("abcdefgh5") is keys.get(None) is None
    for line, wrong in (("short", "key 1 is shorter"), ("abcdefgh rate=fast", "rate=fast"), ("abcdefgh x", "'x'")):
        file.write_text(line)
        with pytest.raises(InvalidKeys, match=wrong) as caught:
            Keys.read(file)
        assert "abcdefgh" not in str(caught.value)


# --- the plain API


@pytest.mark.triton
def test_predict_scores_many_texts_and_decides(gateway: Gateway) -> None:
    answer = gateway.ask("/predict", {"texts": ["What a lovely day", INSULT, ""], "policy": "standard"}).json
    assert [result["decision"]["action"] for result in answer["results"]] == ["allow", "block", "allow"]
    assert "insult" in answer["results"][1]["flagged"]
    assert list(answer["results"][1]["scores"]) == list(LABELS)
    assert gateway.ask("/predict", {"texts": []}).json["results"] == []
    for body, message in (
        ({}, "Give either text or texts."),
        ({"text": "a", "texts": ["b"]}, "Give either text or texts."),
        ({"texts": ["a"] * 1001}, "1001 texts are too many: at most 1000 a request."),
    ):
        assert (gateway.ask("/predict", body).code, gateway.ask("/predict", body).error["message"]) == (400, message)
    for body in ({"text": "a", "policy": "nope"}, {"text": "a", "model": "nope"}):
        assert gateway.ask("/predict", body).code == 404
    part = gateway.ask("/predict", {"text": "a", "model": "toxicity_tokenizer"})
    assert (part.code, "does not score texts" in part.error["message"]) == (404, True)
    assert set(gateway.ask("/policies").json["policies"]) == set(PRESETS)


@pytest.mark.triton
def test_models_are_those_that_score_texts(gateway: Gateway) -> None:
    found = gateway.ask("/models").json
    assert found["active"] == "toxicity"
    assert [(m["name"], m["active"], m["ready"]) for m in found["models"]] == [
        ("toxicity", True, True),
        ("toxicity_second", False, True),
    ]
    assert found["models"][0]["labels"] == list(LABELS)
    assert gateway.ask("/predict", {"text": "a", "model": "toxicity_second"}).json["results"][0]["model"] == (
        "toxicity_second"
    )


@pytest.mark.triton
def test_a_switch_loads_and_unloads_without_a_failed_request(gateway: Gateway) -> None:
    stop = threading.Event()

    def load() -> list[tuple[int, str]]:
        found = []
        while not stop.is_set():
            answer = gateway.ask("/predict", {"text": "hello there"})
            found.append((answer.code, answer.json["results"][0]["model"] if answer.code == 200 else "-"))
            time.sleep(0.02)
        return found

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(load) for _ in range(3)]
        try:
            for name, other in (("toxicity_second", "toxicity"), ("toxicity", "toxicity_second")):
                answer = gateway.ask("/models/switch", {"model": name, "unload": True})
                assert (answer.code, answer.json["active"], answer.json["previous"]) == (200, name, other)
                ready = {m["name"]: m["ready"] for m in gateway.ask("/models").json["models"]}
                assert ready == {name: True, other: False}
            # the same model from its files, as after `python -m export.repository promote`
            assert gateway.ask("/models/switch", {"model": "toxicity", "reload": True}).code == 200
        finally:
            stop.set()
        found = [each for run in runs for each in run.result(30)]
    assert {code for code, _ in found} == {200}
    assert {model for _, model in found} == {"toxicity", "toxicity_second"}
    missing = gateway.ask("/models/switch", {"model": "nope"})
    assert (missing.code, missing.error["status"]) == (404, "NOT_FOUND")
    assert gateway.ask("/models/switch", {"model": "toxicity_second"}).code == 200  # loads it again
    assert gateway.ask("/models/switch", {"model": "toxicity"}).code == 200


@pytest.mark.triton
def test_the_benchmark_asks_and_reads_as_callers_do(triton: TritonServer, gateway: Gateway) -> None:
    contender = Contender(Tritox(SharedServer(triton.repository), "toxicity", "toxicity_encoder"))
    for texts in (["hello"], [INSULT, "hello", "thank you"]):
        answer = gateway.ask(contender.path_of(len(texts)), contender.body(texts))
        expected = gateway.ask("/predict", {"texts": texts}).json["results"]
        found = contender.scores(answer.body)
        assert found.shape == (len(texts), len(LABELS))
        assert found.tolist() == [pytest.approx(list(each["scores"].values()), abs=1e-5) for each in expected]


# --- published clients, of which only the URL is changed


def with_url(name: str, url: str) -> ModuleType:
    """A module as it was published, with the gateway's address where Perspective's stands."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert ORIGINAL in source
    module = ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    exec(compile(source.replace(ORIGINAL, url), spec.origin, "exec"), module.__dict__)
    return module


@pytest.mark.triton
def test_googles_client_library_works_through_the_discovery_document(gateway: Gateway) -> None:
    discovery = pytest.importorskip("googleapiclient.discovery")
    from googleapiclient.errors import HttpError

    service = discovery.build(
        "commentanalyzer",
        "v1alpha1",
        developerKey="API_KEY",
        discoveryServiceUrl=f"{gateway.url}/$discovery/rest?version=v1alpha1",
        static_discovery=False,
    )
    try:
        asked = {"comment": {"text": INSULT}, "requestedAttributes": {"TOXICITY": {}, "INSULT": {}}}
        found = service.comments().analyze(body=asked).execute()
        assert found["attributeScores"]["INSULT"]["summaryScore"]["value"] > 0.5
        assert service.comments().suggestscore(body=suggestion()).execute() == {"clientToken": "comment-53922"}
        with pytest.raises(HttpError, match="Unknown requested attribute: SPAM"):
            service.comments().analyze(body={**asked, "requestedAttributes": {"SPAM": {}}}).execute()
        with pytest.raises(HttpError, match="COMMENT_EMPTY"):
            service.comments().analyze(body={**asked, "comment": {"text": ""}}).execute()
    finally:
        service.close()


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore")  # theirs
def test_perspective_py_works(gateway: Gateway, guarded: Gateway) -> None:
    pytest.importorskip("perspective")
    module = with_url("perspective.main", gateway.url)
    client = module.Client(token="API_KEY")
    try:
        found = client.analyze(INSULT, ["TOXICITY", "INSULT"], language="en")
        assert set(found) == {"TOXICITY", "INSULT"} and found["INSULT"] > 50
        assert len(client.analyze(INSULT)) == 6  # its six production attributes, no language
        with pytest.raises(module.UnsupportedLanguage):
            client.analyze(INSULT, ["TOXICITY"], language="it")
    finally:
        client.client.close()
    with pytest.raises(module.InvalidToken):
        with_url("perspective.main", guarded.url).Client(token="wrong")


@pytest.mark.triton
def test_pyspective_works(gateway: Gateway) -> None:
    pytest.importorskip("pyspective")
    client = with_url("pyspective.pyspective", gateway.url).PyspectiveAPI("API_KEY")
    assert client.score(INSULT, "insult")["INSULT"] > 0.5
    assert client.suggest("hello", 0.0) == "Successed"


NODE = """
const fs = require('fs'), Module = require('module');
const [url, original] = process.argv.slice(1);
const file = require.resolve('perspective-api-client');
const client = new Module(file);
client.filename = file;
client.paths = Module._nodeModulePaths(require('path').dirname(file));
client._compile(fs.readFileSync(file, 'utf8').replace(original, url), file);
const perspective = new client.exports({apiKey: 'API_KEY'});
const say = found => console.log(JSON.stringify(found));
perspective.analyze('You are such an <b>idiot</b>', {attributes: ['toxicity', 'insult']}).then(say)
  .then(() => perspective.analyze('hello', {attributes: ['flirtation']}))
  .catch(error => say({name: error.name, message: error.message, code: error.response.status}));
"""


@pytest.mark.triton
def test_perspective_api_client_of_npm_works(gateway: Gateway) -> None:
    """It is found where node finds it: in node_modules of this folder or above, or in a folder of NODE_PATH."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require.resolve('perspective-api-client')"], cwd=ROOT).returncode:
        pytest.skip("npm install perspective-api-client, and set NODE_PATH to its node_modules")
    command = [node, "-e", NODE, gateway.url, ORIGINAL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found, error = map(json.loads, done.stdout.splitlines())
    assert found["attributeScores"]["INSULT"]["summaryScore"]["value"] > 0.5
    assert error == {"name": "ResponseError", "message": "Unknown requested attribute: FLIRTATION", "code": 400}


# --- the description, and what it holds


@pytest.mark.triton
def test_fuzzing_the_description_finds_no_server_error(gateway: Gateway) -> None:
    """A short run; ``make fuzz`` is the long one."""
    schemathesis = Path(sys.executable).parent / "schemathesis"
    if not schemathesis.is_file():
        pytest.skip("schemathesis is not installed")
    examples = os.environ.get("TRITOX_FUZZ_EXAMPLES", "5")
    command = [str(schemathesis), "run", f"{gateway.url}/openapi.json", "--checks", "not_a_server_error"]
    command += [
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        examples,
        "--seed",
        "7",
        "--generation-database",
        "none",
        "--request-timeout",
        "30",
    ]
    command += ["--exclude-path", "/docs", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "/v1alpha1/comments:analyze" in json.dumps(gateway.ask("/openapi.json").json["paths"])


@pytest.mark.triton
def test_a_query_of_many_fields_is_refused(gateway: Gateway) -> None:
    assert "more than 100 fields" in gateway.ask(f"{ANALYZE}?" + "a&" * 150, {}).error["message"]


@pytest.mark.triton
def test_other_paths_and_methods_are_refused_in_the_same_form(gateway: Gateway) -> None:
    assert gateway.ask("/v1alpha1/comments:nothing", {}).error["status"] == "NOT_FOUND"
    assert gateway.ask(ANALYZE).code == 405
    assert (gateway.ask("/").code, gateway.ask("/app.js").code, gateway.ask("/__init__.py").code) == (200, 200, 404)
    assert gateway.ask("/$discovery/rest?version=v9").code == 404


@pytest.mark.triton
def test_one_command_starts_both(tmp_path: Path) -> None:
    """And Ctrl-C stops both."""
    free = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    options = ["--port", "0", "--feedback", str(tmp_path / "feedback.sqlite"), "--timeout", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *free, "--gateway", "--", *options],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TRITOX_GATEWAY_KEYS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("gateway: http://127.0.0.1:"), process.stderr.read()
        body = json.dumps({"text": INSULT, "policy": "standard"}).encode()
        request = urllib.request.Request(f"{line.split()[1]}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            (result,) = json.load(reply)["results"]
        assert result["decision"]["action"] == "block"
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to both
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


# --- without Triton. This test is the last one: it kills the module's server.


@pytest.mark.triton
def test_when_triton_dies_callers_are_told_to_come_back_and_it_recovers(triton: TritonServer, gateway: Gateway) -> None:
    stop = threading.Event()

    def load() -> list[tuple[float, int, float, bool]]:
        found = []
        while not stop.is_set():
            start = time.monotonic()
            answer = gateway.analyze()
            took = time.monotonic() - start
            found.append((start, answer.code, took, "retry-after" in answer.headers))
            time.sleep(0.05)  # so that it is not refused for being busy
        return found

    assert triton._process is not None
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(load) for _ in range(3)]
        try:
            time.sleep(1)
            os.killpg(triton._process.pid, signal.SIGKILL)
            triton._process.wait()
            time.sleep(2)
            assert gateway.ask("/healthz").code == 200
            assert gateway.ask("/readyz").code == 503
            again = TritonServer(
                triton.repository,
                grpc_port=triton.ports["grpc"],
                http_port=triton.ports["http"],
                metrics_port=triton.ports["metrics"],
                model_control=True,
            )
            with again:
                deadline = time.monotonic() + 15
                while gateway.analyze().code != 200:
                    assert time.monotonic() < deadline, "the gateway did not find the server again"
                    time.sleep(0.1)
                recovered = time.monotonic()
                assert gateway.ask("/readyz").code == 200
                time.sleep(1)
                stop.set()
                found = [each for run in runs for each in run.result(30)]
        finally:
            stop.set()
    assert {code for _, code, _, _ in found} == {200, 503}
    assert all(told for _, code, _, told in found if code == 503)
    assert max(took for _, _, took, _ in found) < gateway.settings.timeout + 1
    assert {code for start, code, _, _ in found if start > recovered} == {200}
