"""Files in, files out: every format, rows that cannot be scored, and jobs that are killed half-way."""

from __future__ import annotations

import csv
import fcntl
import gzip
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from test_client_main import read_until, run
from test_client_sync import LABELS, Stub
from tritonclient.utils import deserialize_bytes_tensor

import client.__main__ as cli
from client import bulk, files
from client.bulk import Scorer
from client.errors import InvalidInput, ServerUnavailable
from client.files import Chunk, InvalidFile, Row, file_format, open_source
from client.policy import Policy
from client.ray_data import Scores
from client.results import Result

SCORES = [f"score_{label}" for label in LABELS]


@pytest.fixture(scope="module")
def shared_stub() -> Iterator[Stub]:
    stub = Stub()
    server = stub.start()
    yield stub
    server.stop(None).wait()


@pytest.fixture
def stub(shared_stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.setenv("TRITOX_URL", shared_stub.grpc_url)
    shared_stub.fault = lambda request, context: None
    shared_stub.requests.clear()
    return shared_stub


def asked(stub: Stub) -> list[str]:
    """The texts that were sent, sorted, each once: requests of a client that is gone may still arrive."""
    requests = list(stub.requests)
    return sorted({row.decode() for r in requests for row in deserialize_bytes_tensor(r.raw_input_contents[0])})


def score(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of any output, with the toxic score as a string of four decimals."""
    kind, compressed = file_format(path)
    if kind == "parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        text = (gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()).decode()
        if kind == "jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=files.DELIMITERS[kind]))
    for row in rows:
        toxic = row["scores"]["toxic"] if "scores" in row else row.get("score_toxic")
        row["toxic"] = f"{float(toxic):.4f}" if toxic not in (None, "") else None
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    kind, compressed = file_format(path)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
        return path
    text = io.StringIO()
    if kind == "jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    elif kind == "txt":
        text.writelines(row["text"] + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter=files.DELIMITERS[kind])
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


def comments(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"{i / 10_000:.4f}", "note": f"ä,\n{i}"} for i in range(count)]


# --- formats


INPUTS = ["in.csv", "in.csv.gz", "in.tsv", "in.jsonl", "in.jsonl.gz", "in.parquet", "in.txt", "in.txt.gz"]
OUTPUTS = ["out.csv", "out.csv.gz", "out.tsv", "out.jsonl", "out.jsonl.gz", "out.parquet"]


@pytest.mark.parametrize("source", INPUTS)
def test_every_format_becomes_every_other(stub: Stub, tmp_path: Path, source: str) -> None:
    rows = comments(150)
    path = write(tmp_path / source, rows)
    for out in OUTPUTS:
        assert score("--in", path, "--out", tmp_path / out, "--policy", "lenient") == 0
        scored = read(tmp_path / out)
        assert [row["text"] for row in scored] == [row["text"] for row in rows] == [row["toxic"] for row in scored]
        if "txt" not in source:
            assert [(int(row["id"]), row["note"]) for row in scored] == [(row["id"], row["note"]) for row in rows]
        assert {row["action"] for row in scored} == {"allow"} and {row["rule"] for row in scored} == {"no rule"}
        assert not any(row.get("error") for row in scored)
    assert sorted(os.listdir(tmp_path)) == sorted([source, *OUTPUTS])


def test_a_csv_has_a_column_for_each_score(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes('\ufeffid,comment\r\n1,"ä, ""0.95"""\r\n\r\n2,0.75\r\n'.encode())
    assert score("--in", path, "--out", tmp_path / "out.csv", "--column", "comment", "--policy", "standard") == 0
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        f"id,comment,{','.join(SCORES)},flagged,truncated,model_version,action,rule,error",
        f'1,"ä, ""0.95""",{",".join(["0.000000"] * 6)},,false,1,allow,no rule,',
        f"2,0.75,{','.join(['0.750000'] * 6)},{' '.join(LABELS)},false,1,block,severe_toxic >= 0.5,",
    ]


def test_parquet_columns_keep_their_types(stub: Stub, tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["0.5", None, "0.25"]).dictionary_encode(),
            "when": pa.array([1, 2, 3], pa.timestamp("ns")),
            "tags": [["a"], [], None],
            "inner": [{"x": 1}, {"x": 2}, None],
        },
        metadata={"mine": "kept"},
    )
    pq.write_table(table, tmp_path / "in.parquet")
    assert score("--in", tmp_path / "in.parquet", "--out", tmp_path / "out.parquet") == 3
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(table.cast(table.schema))
    assert out.schema.metadata[b"mine"] == b"kept"
    assert out.schema.field("score_toxic").type == pa.float32()
    assert out["score_toxic"].to_pylist() == [0.5, None, 0.25]
    assert out["flagged"].to_pylist() == [LABELS, None, []]
    assert out["error"].to_pylist() == [None, "row 2: 'text' is null, must be a string", None]
    assert score("--in", tmp_path / "in.parquet", "--out", tmp_path / "out.jsonl") == 3
    first = read(tmp_path / "out.jsonl")[0]
    assert (first["when"], first["tags"], first["inner"]) == ("1970-01-01 00:00:00", ["a"], {"x": 1})


def test_json_values_of_several_kinds_find_a_column(stub: Stub, tmp_path: Path) -> None:
    lines = [
        {"text": "0.5", "n": 1, "x": 1, "mixed": 1, "deep": {"a": [1]}, "none": None, "big": 2**70},
        {"text": "0.5", "n": 2, "x": 1.5, "mixed": "b", "later": True, "odd": "\ud800"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "broken\n")
    assert score("--in", tmp_path / "in.jsonl", "--out", tmp_path / "out.parquet") == 3
    first, second, broken = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (first["n"], first["x"], first["mixed"], first["deep"]) == (1, 1.0, "1", '{"a": [1]}')
    assert (first["none"], first["big"], first["later"]) == (None, str(2**70), None)
    assert (second["x"], second["mixed"], second["later"], second["odd"]) == (1.5, "b", True, "\ufffd")
    assert broken["error"].startswith("row 3: is not JSON") and broken["text"] is None


# --- rows and files that are wrong


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_bad_row_costs_only_itself(stub: Stub, tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"id,text\n1,0.1\n2,caf\xe9\n3\n4,0.4,5\n5,0.5\nx\xff,0.6\n")
    assert score("--in", path, "--out", tmp_path / out) == 3
    rows = read(tmp_path / out)
    assert [row["toxic"] for row in rows] == ["0.1000", None, None, None, "0.5000", "0.6000"]
    assert [row["text"] or "" for row in rows if "text" in row][-1] == "0.6"
    assert rows[5]["id"] == "x\ufffd"
    errors = [row["error"] for row in rows if row.get("error")]
    assert [error[:35] for error in errors] == [
        "row 2 (line 3): is not UTF-8: byte ",
        "row 3 (line 4): has 1 fields, the h",
        "row 4 (line 5): has 3 fields, the h",
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [f"error: {error}" for error in errors]
    assert said[3:] == [f"wrote {tmp_path / out}: 6 rows, 3 not scored: see their error"]


def test_strings_of_a_parquet_file_that_are_no_utf8(stub: Stub, tmp_path: Path) -> None:
    raw = pa.array([b"0.1", b"caf\xe9", b"0.3"]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "in.parquet")
    for out in ("out.parquet", "out.csv"):
        assert score("--in", tmp_path / "in.parquet", "--out", tmp_path / out) == 3
        first, bad, last = read(tmp_path / out)
        assert (first["toxic"], bad["toxic"], last["toxic"]) == ("0.1000", None, "0.3000")
        assert bad["text"] == "caf\ufffd" and bad["error"].startswith("row 2: is not UTF-8: byte 0xe9 at position 3")


def test_only_the_first_bad_rows_are_named(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text("no\n" * 30 + '{"text": "0.5"}\n')
    assert score("--in", tmp_path / "in.jsonl") == 3
    out, err = capsys.readouterr()
    assert out.count("\n") == 31
    assert err.count("error: row") == 10
    assert err.splitlines()[-1] == "31 rows, 30 not scored: see their error"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"id,comment\n1,a\n", "has no column 'text', it has 'id', 'comment': name the one .* with --column"),
        ("in.csv", b"", "has no column 'text', it has none"),
        ("in.csv", b"text,a,a\n", "has two columns 'a': rename one"),
        ("in.csv", b"text,error\n0.5,x\n", "the input has a column 'error', and so have the results"),
        ("in.xlsx", b"", "must end in .csv, .tsv, .jsonl"),
        ("in.parquet.gz", b"", "must end in .*not Parquet"),
        ("in.parquet", b"no parquet", "is no Parquet file"),
        ("in.csv.gz", b"text\n", "in.csv.gz cannot be read after row 0: Not a gzipped file"),
        ("in.csv.gz", gzip.compress(b"text\n" + b"0.1\n" * 9)[:-9], "cannot be read after row .*; repair it"),
    ],
)
def test_a_file_that_cannot_be_scored(
    stub: Stub, tmp_path: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert score("--in", tmp_path / name, "--out", tmp_path / "out.csv") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error
    assert not (tmp_path / "out.csv").exists()


def test_outputs_that_cannot_be(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "in.csv", comments(3))
    for out, message in [
        (path, "is the input, too"),
        (tmp_path, "is a folder"),
        (tmp_path / "no/out.csv", "out.csv.partial cannot be written: No such file"),
        (tmp_path / "out.txt", "plain text has no place for scores"),
    ]:
        assert score("--in", path, "--out", out) == 1
        assert message in capsys.readouterr().err
    assert score("--in", tmp_path / "nowhere.csv", "--out", tmp_path / "out.csv") == 1
    assert "nowhere.csv cannot be read: No such file" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.csv"] and stub.requests == []


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(InvalidFile, match="the column 'text' is int64, must be string"):
        open_source(tmp_path / "in.parquet", "text")


def test_an_empty_file_gives_an_empty_file(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\n")
    for out in OUTPUTS:
        assert score("--in", tmp_path / "in.csv", "--out", tmp_path / out) == 0
        assert read(tmp_path / out) == []


def test_what_a_ray_worker_does_to_a_table(stub: Stub) -> None:
    """The cluster itself is in test_client_ray_data.py, which needs Ray."""
    worker = Scores(stub.grpc_url, "toxicity", "text", Policy.read("standard"), 2, 10.0, 10.0)
    texts = [f"{i / 1000:.4f}".encode() for i in range(200)]
    table = pa.table({"id": range(200), "text": pa.array([*texts[:7], None, b"caf\xe9", *texts[9:]], pa.binary())})
    scored = worker(table)
    assert scored.column_names == ["id", "text", *files.result_columns(LABELS, policy=True)]
    assert scored["id"].to_pylist() == list(range(200))
    bad = [(row["id"], row["error"][:20]) for row in scored.to_pylist() if row["error"]]
    assert bad == [(7, "'text' is null, must"), (8, "is not UTF-8: byte 0")]  # the row's number is not known there
    assert [f"{score:.4f}" for score in scored["score_toxic"].to_pylist()[9:]] == [text.decode() for text in texts[9:]]
    assert scored["action"].to_pylist()[9:] == ["allow"] * 91 + ["review"] * 100
    worker.client.close()


# --- several requests in flight


class Counting:
    """Scores in as long as it is told; counts how many calls run at a time."""

    def __init__(self, wait_s: float = 0.0, refuses: str = "") -> None:
        self.wait_s, self.refuses = wait_s, refuses
        self.lock = threading.Lock()
        self.running = self.most = self.calls = 0

    def classify(self, texts: Any, timeout: float | None = None) -> list[Result]:
        with self.lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self.wait_s * (1 + (self.calls * 7) % 3))
        with self.lock:
            self.running -= 1
        if any(self.refuses and self.refuses in text for text in texts):
            raise InvalidInput("too long for it")
        return [Result({"toxic": float(text)}, (), False, "m", "1", "r") for text in texts]


def numbered(count: int, size: int = 2) -> Iterator[Chunk]:
    rows = [Row(i, {}, f"0.{i:04}") for i in range(1, count + 1)]
    return (Chunk(rows[i : i + size]) for i in range(0, count, size))


def test_requests_overlap_and_their_results_do_not() -> None:
    server = Counting(0.01)
    scored = list(Scorer(server, in_flight=4).score(numbered(81)))
    assert server.most == 4
    rows = [row for chunk in scored for row in chunk.rows]
    assert [row.row.number for row in rows] == list(range(1, 82))
    assert all(row.result and row.result.scores["toxic"] == float(row.row.text or "") for row in rows)


def test_a_file_is_not_read_far_ahead_of_what_is_written() -> None:
    ahead, read_chunks = 0, 0

    def source() -> Iterator[Chunk]:
        nonlocal read_chunks
        for chunk in numbered(400):
            read_chunks += 1
            yield chunk

    for taken, _ in enumerate(Scorer(Counting(), in_flight=3).score(source())):
        ahead = max(ahead, read_chunks - taken)
    assert 1 <= ahead <= 7


def test_a_text_that_the_server_refuses_costs_only_itself() -> None:
    rows = [row for chunk in Scorer(Counting(refuses="5")).score(numbered(64, 16)) for row in chunk.rows]
    bad = [row.row.number for row in rows if row.row.error]
    assert bad == [i for i in range(1, 65) if "5" in str(i)]
    assert rows[4].row.error == "row 5: too long for it" and rows[4].result is None


def test_a_server_that_refuses_everything_stops_the_job() -> None:
    with pytest.raises(InvalidInput, match="too long"):
        list(Scorer(Counting(refuses="0")).score(numbered(64, 16)))


def test_patience_outlasts_a_server_that_is_away(stub: Stub, tmp_path: Path) -> None:
    failures = iter([grpc.StatusCode.UNAVAILABLE] * 3)

    def fault(request: Any, context: Any) -> None:
        if (status := next(failures, None)) is not None:
            context.abort(status, "Exceeds maximum queue size")

    stub.fault = fault
    path = write(tmp_path / "in.jsonl", comments(200))
    assert score("--in", path, "--out", tmp_path / "out.jsonl") == 0
    assert [row["toxic"] for row in read(tmp_path / "out.jsonl")] == [row["text"] for row in comments(200)]


def test_patience_ends() -> None:
    class Away:
        def classify(self, texts: Any, timeout: float | None = None) -> list[Result]:
            raise ServerUnavailable("nobody there")

    said: list[str] = []
    started = time.monotonic()
    with pytest.raises(ServerUnavailable):
        list(Scorer(Away(), patience_s=0.5, note=said.append).score(numbered(4)))
    assert time.monotonic() - started < 3
    assert said and said[0] == "waiting for the server: nobody there"


# --- interrupted


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl.gz", "out.parquet"])
def test_a_killed_job_goes_on_without_loss_or_repeat(stub: Stub, tmp_path: Path, out: str) -> None:
    rows = comments(6000)
    source = write(tmp_path / ("in.parquet" if "parquet" in out else "in.csv"), rows)
    target, record = tmp_path / out, tmp_path / f"{out}.partial.json"
    stub.fault = lambda request, context: time.sleep(0.05)
    command = [sys.executable, "-m", "client", "--in", str(source), "--out", str(target), "--url", stub.grpc_url]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not record.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not target.exists()
    done = json.loads(record.read_text())["rows"]
    assert 0 < done < len(rows)
    with (tmp_path / f"{out}.partial").open("ab") as partial:
        partial.write(b"half a block")  # as a kill between writing and saying so leaves it

    stub.fault = lambda request, context: None
    stub.requests.clear()
    again = run("client", *command[3:])
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, f"wrote {target}: 6,000 rows")
    assert f"going on after row {done:,}, where {target}.partial ends" in again.stderr
    scored = read(target)
    assert [(int(row["id"]), row["text"], row["toxic"]) for row in scored] == [
        (row["id"], row["text"], row["text"]) for row in rows
    ]
    assert asked(stub) == [row["text"] for row in rows[done:]]  # no row that was written is paid for twice
    assert sorted(os.listdir(tmp_path)) == sorted([source.name, out])


def interrupted(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A job whose server was lost; its command."""
    monkeypatch.setattr(bulk, "CHECKPOINT_ROWS", 64)

    def fault(request: Any, context: Any) -> None:
        if len(stub.requests) > 5:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    stub.fault = fault
    source = write(tmp_path / "in.csv", comments(1000))
    command = ["--in", source, "--out", tmp_path / "out.csv", "--patience", 0, "--policy", "standard"]
    assert score(*command) == 1
    assert (tmp_path / "out.csv.partial.json").exists()
    stub.fault = lambda request, context: None
    stub.requests.clear()
    return command


def test_a_lost_server_leaves_what_it_gave(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = interrupted(stub, tmp_path, monkeypatch)
    done = json.loads((tmp_path / "out.csv.partial.json").read_text())["rows"]
    assert 64 <= done <= 320
    assert f"stopped after row {done}, see {tmp_path / 'out.csv.partial'}" in capsys.readouterr().err
    assert score(*command) == 0
    assert asked(stub) == [row["text"] for row in comments(1000)[done:]]
    assert "1,000 rows, 1,000 allow" in capsys.readouterr().err  # with those of the first run
    assert [row["toxic"] for row in read(tmp_path / "out.csv")] == [row["text"] for row in comments(1000)]


def test_another_version_of_the_model_goes_on_and_is_named(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = interrupted(stub, tmp_path, monkeypatch)
    done = json.loads((tmp_path / "out.csv.partial.json").read_text())["rows"]
    monkeypatch.setattr(stub, "version", "2")
    assert score(*command) == 0
    assert "note: versions 1, 2 of the model" in capsys.readouterr().err
    assert [row["model_version"] for row in read(tmp_path / "out.csv")] == ["1"] * done + ["2"] * (1000 - done)


def test_ctrl_c_does_not_wait_for_the_server(stub: Stub, tmp_path: Path) -> None:
    source, answer, asked_once = write(tmp_path / "in.csv", comments(500)), threading.Event(), threading.Event()

    def fault(request: Any, context: Any) -> None:
        asked_once.set()
        answer.wait(60)

    stub.fault = fault
    command = [sys.executable, "-m", "client", "--in", str(source), "--out", str(tmp_path / "out.csv")]
    with subprocess.Popen(
        [*command, "--timeout", "60"],
        cwd=ROOT,
        env=os.environ | {"TRITOX_URL": stub.grpc_url},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert asked_once.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=40)
    assert not answer.is_set()
    answer.set()
    assert process.returncode == 130
    assert said.decode().splitlines() == [
        f"stopped after row 0, see {tmp_path / 'out.csv.partial'}: the same command goes on there"
    ]


@pytest.mark.parametrize(
    ("change", "name"), [(["--policy", "strict"], "policy"), (["--column", "note"], "column"), ([], "input")]
)
def test_another_job_does_not_go_on_there(
    stub: Stub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    name: str,
) -> None:
    command = interrupted(stub, tmp_path, monkeypatch)
    if not change:
        write(tmp_path / "in.csv", comments(999))
    assert score(*command, *change) == 1
    assert f"out.csv.partial was begun with another {name} (" in capsys.readouterr().err
    assert score(*command, *change, "--restart") == 0
    assert len(read(tmp_path / "out.csv")) == (1000 if change else 999)


def test_two_processes_do_not_write_one_output(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.csv", comments(3))
    with (tmp_path / "out.csv.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert score("--in", source, "--out", tmp_path / "out.csv") == 1
    assert "is being written by another process" in capsys.readouterr().err


def test_a_terminal_sees_how_far_it_is(stub: Stub, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", comments(2000))
    stub.fault = lambda request, context: time.sleep(0.05)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "client", "--in", str(source), "--out", str(tmp_path / "out.csv")]
    with subprocess.Popen(command, cwd=ROOT, stderr=theirs) as process:
        os.close(theirs)
        seen = read_until(ours, " left")
        seen += read_until(ours, "wrote ")
        assert process.wait(60) == 0
    os.close(ours)
    assert "% |#" in seen and " rows, " in seen and "/s, 0:0" in seen


def test_readmes_examples_run(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text().partition("<!-- files -->\n```\n")[2].partition("```")[0]
    commands = [line.removeprefix("python -m client ") for line in readme.splitlines()]
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    write(Path("comments.csv"), [{"id": i, "comment_text": f"0.{i}"} for i in range(9)])
    write(Path("lines.txt"), comments(9))
    write(Path("rows.jsonl"), comments(9))
    for command in commands:
        assert score(*command.partition(" > ")[0].split()) == 0
