"""Decisions are written to stay, found by a keyed hash, and made again by another model or policy."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from test_client_sync import Stub, stub  # noqa: F401  (a fixture)

from client import InvalidInput, ModelInfo, Result, ToxicityClient
from client.policy import Policy
from client.records import Record, Records, RecordsFailed, decided, text_hash, write_parquet
from client.replay import Policies, changes

KEY = "a key of the records"
INFO = ModelInfo("toxicity", "1", ("toxic", "insult"), {"toxic": 0.5, "insult": 0.4}, 128, 64, "int8", "1.0.0", "abc")
RESULT = Result({"toxic": 0.75, "insult": 0.1}, ("toxic",), False, "toxicity", "1", "r1")


def record(text: str | None = "some text", result: Result = RESULT, **changed: object) -> Record:
    made = decided(text_hash(text or "", KEY), text, result, INFO)
    return Record(**{**{c: getattr(made, c) for c in made.__dataclass_fields__}, **changed})  # type: ignore[arg-type]


def test_a_record_says_what_was_decided_and_why(tmp_path: Path) -> None:
    policy = Policy.read("standard")
    scores = dict.fromkeys(policy.labels, 0.01) | {"toxic": 0.95}
    result = Result(scores, ("toxic",), True, "toxicity", "1", "r1")
    with Records(str(tmp_path / "d.sqlite"), KEY) as records:
        made = decided(records.hash("a text"), "a text", result, INFO, policy, policy.decide(result))
        records.add([made])
        (found,) = records.rows()
    assert found.text is None and found.text_hash == text_hash("a text", KEY) != text_hash("a text", KEY + "2")
    assert (found.scores, found.thresholds, found.flagged) == (scores, dict(INFO.thresholds), ["toxic"])
    assert (found.model, found.model_version, found.release, found.normalizer) == ("toxicity", "1", "1.0.0", "abc")
    assert (found.policy, found.action, found.rule) == ("standard", "block", "toxic >= 0.9")
    assert found.policy_sha256 == policy.sha256 and found.truncated and found.at.endswith("+00:00")
    assert (tmp_path / "d.sqlite").stat().st_mode & 0o077 == 0
    assert b"a text" not in (tmp_path / "d.sqlite").read_bytes()


def test_texts_are_kept_where_they_are_asked_for_whatever_they_hold(tmp_path: Path) -> None:
    with Records(str(tmp_path / "d.sqlite"), KEY, keep_text=True) as records:
        records.add([record("plain"), record("a\0b"), record("lone \ud800")])
        assert [found.text for found in records.rows()] == ["plain", "a\ufffdb", "lone ?"]


def test_rows_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    with Records(str(path), KEY) as records:
        records.add([record()])
    connection = sqlite3.connect(path)
    for command in ("UPDATE decisions SET flagged = '[]'", "DELETE FROM decisions"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(command)
    connection.close()
    with Records(str(path), read_only=True) as records:
        assert len(list(records.rows())) == 1
        with pytest.raises(RecordsFailed, match="failed with OperationalError"):
            records.add([record()])


def test_many_threads_write_and_a_reader_sees_all(tmp_path: Path) -> None:
    with Records(str(tmp_path / "d.sqlite"), KEY) as records:

        def write(number: int) -> None:
            for turn in range(60):
                records.add([record(request_id=f"{number}-{turn}"), record(request_id=f"{number}-{turn}")])

        threads = [threading.Thread(target=write, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(records.rows())) == 1200  # more than are read at a time
        assert len(list(records.rows(request_id="3-7"))) == 2
        assert not list(records.rows(since="2999")) and not list(records.rows(until="2000"))


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has 5 characters, must be at least 16.*TRITOX_RECORDS_KEY"):
        Records(str(tmp_path / "d.sqlite"), "short")
    with pytest.raises(RecordsFailed, match="cannot be written"):
        Records(str(tmp_path / "none/d.sqlite"), KEY)
    with pytest.raises(RecordsFailed, match="there is no file"):
        Records(str(tmp_path / "none.sqlite"), read_only=True)
    with Records(str(tmp_path / "d.sqlite"), KEY) as records:
        pass
    with pytest.raises(RecordsFailed, match="was closed"):
        records.add([record()])
    (tmp_path / "text.sqlite").write_text("no database at all, but long enough to be looked at" * 10)
    with pytest.raises(RecordsFailed, match="failed with DatabaseError"):
        Records(str(tmp_path / "text.sqlite"), KEY)


def test_parquet_holds_all_of_it(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    with Records(str(tmp_path / "d.sqlite"), KEY) as records:
        records.add([record(request_id=str(n)) for n in range(3)])
        assert write_parquet(records, tmp_path / "d.parquet") == 3
    rows = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert [row["request_id"] for row in rows] == ["0", "1", "2"]
    assert json.loads(rows[0]["scores"]) == RESULT.scores and rows[0]["truncated"] is False
    assert [f.name for f in tmp_path.glob("*.tmp")] == []


# --- made again


def test_only_other_decisions_are_changes() -> None:
    then = record(policy="standard", policy_sha256=Policy.read("standard").sha256, action="review", rule="x")
    scores = dict.fromkeys(Policy.read("standard").labels, 0.01)
    same = Result({**RESULT.scores, "toxic": 0.6}, ("toxic",), False, "toxicity", "2", "r2")
    assert changes(then, same, None) is None
    other = Result({**scores, "toxic": 0.95}, ("insult", "toxic"), False, "toxicity", "2", "r2")
    found = changes(then, other, Policies(None).of(then))
    assert found is not None and found["changed"] == ["insult"] and found["text_hash"] == then.text_hash
    assert (found["recorded"]["action"], found["now"]["action"]) == ("review", "block")
    assert found["now"]["model_version"] == "2" and "text" not in json.dumps(found).replace("text_hash", "")


def test_a_policy_that_changed_decides_nothing() -> None:
    policies = Policies(None)
    assert policies.of(record(policy="standard", policy_sha256="other")) is None
    assert policies.of(record(policy="our own", policy_sha256="x")) is None
    assert policies.changed == {"standard": "another one since", "our own": "no preset"}
    assert policies.of(record()) is None


def test_replay_lists_what_changed(stub: Stub, tmp_path: Path) -> None:  # noqa: F811
    """The stub scores a text by the number in it; its threshold is 0.5."""
    path, texts = tmp_path / "d.sqlite", tmp_path / "texts.csv"
    with ToxicityClient(stub.grpc_url) as client, Records(str(path), KEY) as records:
        for text, flagged in (("0.7", None), ("0.2", ()), ("0.9", ())):
            (result,) = client.classify([text])
            made = decided(records.hash(text), text, result, client.info())
            changed = {} if flagged is None else {"flagged": list(flagged)}
            records.add([Record(**{**{c: getattr(made, c) for c in made.__dataclass_fields__}, **changed})])
        names = [found.request_id for found in records.rows()]
    texts.write_text("text\n0.7\n0.2\n0.9\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "client", "replay", str(path), "--url", stub.grpc_url, *arguments]
        environment = {**os.environ, "TRITOX_RECORDS_KEY": KEY}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    done = run("--texts", str(texts), "--out", str(tmp_path / "changed.jsonl"))
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    changed = [json.loads(line) for line in (tmp_path / "changed.jsonl").read_text().splitlines()]
    assert names[2] in [each["request_id"] for each in changed]
    assert f"3 of 3 records replayed, {len(changed)} decided otherwise" in done.stderr
    done = run("--texts", str(texts), "--request-id", names[0])
    assert (done.returncode, done.stdout) == (0, "") and "1 of 1 records replayed, 0 decided" in done.stderr
    done = run()
    assert "0 of 3 records replayed" in done.stderr and "3 have no text: give --texts" in done.stderr
    assert run("--parquet", str(tmp_path / "d.parquet")).returncode == 0
    assert (tmp_path / "d.parquet").stat().st_size > 0
