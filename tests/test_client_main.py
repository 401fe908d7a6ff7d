"""``python -m client`` and ``python -m client.demo`` as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_client_sync import LABELS, Stub, stub  # noqa: F401  (a fixture)

import client.__main__ as cli
from client import demo
from client.results import ModelInfo, Result

ROOT = Path(__file__).parents[1]


def run(
    module: str, *arguments: str, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env=os.environ | {"COLUMNS": "100"} | environment,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def rows(done: subprocess.CompletedProcess[str]) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_texts_from_the_command_line(stub: Stub) -> None:  # noqa: F811
    done = run("client", "0.75", "schön", "--url", stub.grpc_url, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = rows(done)
    request = first.pop("request_id")
    assert first == {
        "text": "0.75",
        "scores": dict.fromkeys(LABELS, 0.75),
        "flagged": LABELS,
        "truncated": False,
        "model": "toxicity",
        "model_version": "1",
    }
    assert (second["text"], second["flagged"], second["request_id"]) == ("schön", [], request)
    assert "schön" in done.stdout


def test_a_line_of_stdin_is_a_text(stub: Stub) -> None:  # noqa: F811
    done = run("client", "-", stdin="0.1\n\n0.2\r\nä\u2028b\n0.9".encode(), TRITOX_URL=stub.grpc_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["text"] for row in map(json.loads, done.stdout.rstrip("\n").split("\n"))] == [
        "0.1",
        "",
        "0.2",
        "ä\u2028b",
        "0.9",
    ]


def test_a_line_that_is_no_utf8_bears_an_error_and_the_others_are_scored(stub: Stub) -> None:  # noqa: F811
    done = run("client", "-", "--url", stub.grpc_url, stdin=b"0.1\n0.2 caf\xe9\n0.3\n")
    assert done.returncode == 3
    first, bad, last = rows(done)
    assert (first["text"], last["text"], last["scores"]["toxic"]) == ("0.1", "0.3", 0.3)
    assert bad["text"] == "0.2 caf\ufffd" and "scores" not in bad
    assert bad["error"].startswith("row 2: is not UTF-8: byte 0xe9 at position 7;")
    assert done.stderr == f"error: {bad['error']}\n"


def test_json_lines_keep_their_other_keys_and_bad_ones_bear_an_error(stub: Stub) -> None:  # noqa: F811
    lines = [
        '{"id": 7, "text": "line\\nä", "scores": 1, "error": "of an earlier run"}',
        "no json",
        '{"id": 8}',
        '{"text": "\\ud800"}',
        "[1]",
        '{"id": 9, "text": null, "weight": NaN}',
        '{"text": "0.25"}',
    ]
    done = run("client", "--jsonl", "-", "--url", stub.grpc_url, stdin="\n".join(lines).encode())
    assert done.returncode == 3
    first, *bad, last = rows(done)
    assert (first["id"], first["text"], list(first["scores"]), "error" in first) == (7, "line\nä", LABELS, False)
    assert (last["text"], last["scores"]["toxic"]) == ("0.25", 0.25)
    assert [row["error"].partition(": ")[2] for row in bad] == [
        "is not JSON: Expecting value: line 1 column 1 (char 0)",
        "'text' is missing, must be a string",
        "'text' holds a lone surrogate at position 0, which is no text",
        "is a JSON list, must be an object",
        "'text' is null, must be a string",
    ]
    assert [row["error"].partition(":")[0] for row in bad] == [f"row {n}" for n in range(2, 7)]
    assert [row.get("id") for row in bad] == [None, 8, None, None, 9]
    assert done.stderr.splitlines() == [f"error: {row['error']}" for row in bad]


def test_a_policy_adds_the_action_and_its_rule(stub: Stub) -> None:  # noqa: F811
    done = run("client", "0.95", "0.6", "0.01", "--policy", "standard", "--url", stub.grpc_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert [(row["action"], row["rule"]) for row in rows(done)] == [
        ("block", "toxic >= 0.9"),
        ("block", "severe_toxic >= 0.5"),
        ("allow", "no rule"),
    ]


def test_a_file_given_as_a_text_is_noted(stub: Stub, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "a.csv").write_text("text\n")
    done = run("client", str(tmp_path / "a.csv"), "--url", stub.grpc_url)
    assert (done.returncode, len(rows(done))) == (0, 1)
    assert done.stderr == f"note: {tmp_path}/a.csv was scored as a text; --in {tmp_path}/a.csv scores its rows\n"


def test_a_policy_for_another_model_is_refused(stub: Stub, tmp_path: Path) -> None:  # noqa: F811
    policy = tmp_path / "p.yaml"
    policy.write_text("rules: [{block: {spam: 0.5}}]")
    done = run("client", "hello", "--policy", str(policy), "--url", stub.grpc_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: policy 'p', rule 1 names the label 'spam', the model has toxic,")
    assert stub.requests == []


def test_many_lines_are_sent_in_batches(stub: Stub) -> None:  # noqa: F811
    texts = [f"{i / 1000:.3f}" for i in range(500)]
    done = run("client", "-", "--url", stub.grpc_url, stdin="\n".join(texts).encode())
    assert [row["text"] for row in rows(done)] == texts
    assert [f"{row['scores']['toxic']:.3f}" for row in rows(done)] == texts
    assert len(stub.requests) < 20


def test_a_slow_pipe_is_answered_line_by_line(stub: Stub) -> None:  # noqa: F811
    process = subprocess.Popen(
        [sys.executable, "-m", "client", "-", "--url", stub.grpc_url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    with process:
        for text in (b"0.1", b"0.2"):
            process.stdin.write(text + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 20)[0], "no answer although the line is complete"
            assert json.loads(os.read(process.stdout.fileno(), 10_000))["text"] == text.decode()
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_reader_that_leaves_is_no_error(stub: Stub) -> None:  # noqa: F811
    process = subprocess.Popen(
        [sys.executable, "-m", "client", "-", "--url", stub.grpc_url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(b"0.1\n" * 100, timeout=20)
    assert (process.returncode, stderr) == (1, b"")


def test_a_server_that_is_not_there_is_one_line() -> None:
    done = run("client", "hello", "--url", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 127.0.0.1:1 cannot be reached") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["-", "hello"], ["hello", "--url", "http://127.0.0.1:8000"], ["hello", "--timeout", "0"], ["--no"]]
    + [["hello", "--in", "a.csv"], ["hello", "--out", "a.csv"], ["--in", "a.csv", "--restart"]]
    + [["hello", "--jsonl"], ["hello", "--in-flight", "0"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m client" in capsys.readouterr().err


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    # a module of that name that fails as an absent one does, found before the installed one
    (tmp_path / "tritonclient.py").write_text("raise ModuleNotFoundError('no', name='tritonclient')")
    done = run("client", "hello", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        "error: the client needs the package tritonclient: pip install -e '.[client]' -c constraints.txt\n"
    )


# --- the demo


def test_the_demo_ends_by_itself_without_a_terminal(stub: Stub) -> None:  # noqa: F811
    done = run("client.demo", "--url", stub.grpc_url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(demo.SAMPLES) + 2
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["comment", "toxic", "severe", "obscene", "threat", "insult", "identity"]
    assert lines[1].split() == ["toxic", "hate"]
    assert all(line.split()[-6:] == ["0.00"] * 6 for line in lines[2:-2])
    assert f"{len(demo.SAMPLES)} comments in" in lines[-1] and "version 1, int8" in lines[-1]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_demo_asks_a_user_for_comments(stub: Stub, no_color: str) -> None:  # noqa: F811
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "client.demo", "--url", stub.grpc_url],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"NO_COLOR": no_color},
    )
    os.close(theirs)
    with process:
        seen = read_until(ours, "your comment")
        os.write(ours, b"0.97\n")
        seen = read_until(ours, "your comment")
        assert "0.97*" in seen
        assert ("\x1b[1;31m" in seen) is (no_color == "")
        os.write(ours, b"\x04")  # Ctrl-D
        assert process.wait(20) == 0
    os.close(ours)


def read_until(descriptor: int, text: str) -> str:
    seen, deadline = "", time.monotonic() + 20
    while text not in seen:
        assert select.select([descriptor], [], [], deadline - time.monotonic())[0], f"no {text!r} in {seen!r}"
        seen += os.read(descriptor, 10_000).decode()
    return seen


def test_table_rows_line_up_whatever_the_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    table = demo.Table(ModelInfo("toxicity", "1", tuple(LABELS), dict.fromkeys(LABELS, 0.5), 128, 64, "int8"))
    result = Result(dict.fromkeys(LABELS, 0.25), ("toxic",), False, "toxicity", "1", "")
    narrow = table.row("short", result)
    assert len(narrow) <= 100
    for text in ("x" * 200, "tab\tand\nnewline\x1b[31m", ""):
        line = table.row(text, result)
        assert len(line) == len(narrow) and line.isprintable()
    assert table.row("漢" * 80, result).index("0.25*") < narrow.index("0.25*")  # wide characters take two columns


@pytest.mark.parametrize(
    ("text", "fitted"),
    [
        ("abc", "abc  "),
        ("abcde", "abcde"),
        ("abcdef", "abcd…"),
        ("漢字漢字", "漢字…"),
        ("a\x07b", "a b  "),
        ("漢字x", "漢字x"),
    ],
)
def test_fit(text: str, fitted: str) -> None:
    assert demo.fit(text, 5) == fitted


# --- a real server


@pytest.mark.triton
def test_the_command_line_against_a_real_server(server: Any) -> None:
    lines = ["Thank you for your help", "", "on and on " * 200] * 30
    done = run("client", "-", "--timeout", "60", stdin="\n".join(lines).encode(), TRITOX_URL=server.grpc_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["text"] for row in rows(done)] == lines
    assert [i for i, row in enumerate(rows(done)) if row["truncated"]] == list(range(2, 90, 3))


@pytest.mark.triton
def test_the_demo_against_a_real_server(server: Any) -> None:
    done = run("client.demo", "--timeout", "60", TRITOX_URL=server.grpc_url)
    assert (done.returncode, done.stderr) == (0, "")
    (polite,) = [line for line in done.stdout.splitlines() if line.startswith("Thank you")]
    (rude,) = [line for line in done.stdout.splitlines() if line.startswith("Shut up")]
    assert "*" not in polite and "*" in rude
