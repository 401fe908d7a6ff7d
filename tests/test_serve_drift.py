"""Drift: what counts as one, and what does not. With a server: tests/test_docker_monitoring.py."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import InvalidInput, ModelInfo, Result
from client.records import Record, Records, decided
from serve.drift import curated, live
from serve.drift.__main__ import ago, main
from serve.drift.measure import DRIFTED, MOVED, STEADY, chance_of_psi, compare_rates, compare_shares, psi
from serve.drift.reference import Reference, read_reference
from serve.drift.texts import truth_of
from serve.identities import TERMS, Identities
from train.bias import IDENTITY_TERMS, find_identities


def test_psi_is_the_sum_that_it_is_said_to_be() -> None:
    shares = [(0.5, 0.25), (0.3, 0.25), (0.2, 0.5)]
    by_hand = sum((found - then) * math.log(found / then) for then, found in shares)
    then, found = (np.array([1e6 * pair[i] for pair in shares]) for i in (0, 1))
    assert psi(then, found) == pytest.approx(by_hand, rel=1e-4)
    assert psi(then, then) == 0
    assert math.isfinite(psi(np.array([10.0, 0]), np.array([0.0, 10])))


def test_nothing_has_changed_so_chance_alone_rarely_passes_the_limit() -> None:
    rng = np.random.default_rng(1)
    shares = np.array([0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005])
    beyond = 0
    for _ in range(2000):
        then, now = rng.multinomial(3000, shares), rng.multinomial(300, shares)
        beyond += psi(then, now) > chance_of_psi(then, now)
    assert beyond < 12  # 2 are to be expected


def test_few_comments_are_no_drift_and_many_are() -> None:
    assert compare_shares("score", "toxic", [900, 100], [17, 6]).verdict == STEADY
    assert compare_shares("score", "toxic", [9000, 1000], [1700, 600]).verdict == MOVED
    assert compare_shares("score", "toxic", [9000, 1000], [1200, 1100]).verdict == DRIFTED


def test_a_rate_has_moved_where_it_is_half_as_much_again_and_chance_does_not_do_that() -> None:
    assert compare_rates("toxic", 100, 1000, 110, 1000).verdict == STEADY
    assert compare_rates("toxic", 100, 1000, 170, 1000).verdict == MOVED
    assert compare_rates("toxic", 100, 1000, 250, 1000).verdict == DRIFTED
    assert compare_rates("toxic", 250, 1000, 100, 1000).verdict == DRIFTED
    assert compare_rates("toxic", 2, 50, 5, 50).verdict == STEADY, "three comments more"
    assert compare_rates("toxic", 100, 1000, 152, 1000, tests=1).verdict == MOVED
    assert compare_rates("toxic", 100, 1000, 152, 1000, tests=100_000).verdict == STEADY


def test_terms_are_those_that_bias_is_measured_on() -> None:
    assert TERMS == IDENTITY_TERMS
    texts = ["African American and trans.", "a MIDDLE-AGED man", "transport", "the older, old one"]
    identities = Identities()
    for i, text in enumerate(texts):
        assert identities.named(text) == {term for term, named in find_identities(texts).items() if named[i]}


def test_errors_and_calibration_by_hand() -> None:
    scores = np.array([[0.95], [0.85], [0.05], [0.15], [0.65]])
    truth = np.array([[1.0], [0.0], [0.0], [0.0], [float("nan")]])
    found = curated.rates(scores, truth, {"toxic": 0.5})["toxic"]
    assert (found["positives"], found["negatives"]) == (1, 3)
    assert found["false_positive_rate"] == pytest.approx(1 / 3, abs=1e-6) and found["false_negative_rate"] == 0
    assert found["calibration_error"] == pytest.approx((0.05 + 0.85 + 0.05 + 0.15) / 4)
    assert found["brier_score"] == pytest.approx((0.05**2 + 0.85**2 + 0.05**2 + 0.15**2) / 4)
    before = {"toxic": {**found, "false_positive_rate": found["false_positive_rate"] - 0.01}}
    verdicts = {f.what: f.verdict for f in curated.compare("own", before, {"toxic": found})}
    assert verdicts == {"false_positive_rate": MOVED, "false_negative_rate": STEADY, "calibration_error": STEADY}


def test_truth_comes_from_columns_or_a_list() -> None:
    assert truth_of({"a": "0.7", "b": "0.2"}, ["a", "b"]) == [1, 0]
    assert truth_of({"labels": [0, 1]}, ["a", "b"]) == [0, 1]
    assert np.isnan(truth_of({"a": ""}, ["a"])).all()


def test_a_counter_that_fell_was_started_anew() -> None:
    before = {"toxic": {"0.5": 50.0, "+Inf": 80.0}}
    assert live.grown(before, {"toxic": {"0.5": 60.0, "+Inf": 100.0}}) == {"toxic": {"0.5": 10.0, "+Inf": 20.0}}
    assert live.grown(before, {"toxic": {"0.5": 3.0, "+Inf": 4.0}}) == {"toxic": {"0.5": 3.0, "+Inf": 4.0}}


def test_histograms_of_replicas_are_added_and_other_versions_left_out() -> None:
    text = "\n".join(
        f'm_bucket{{label="a",le="{le}",model="x",version="{version}"}} {count}'
        for version, le, count in [("1", "0.5", 2), ("1", "+Inf", 5), ("2", "0.5", 9)]
    )
    assert live.buckets(f"{text}\n{text}\nm_count 3", "m", "x", "1") == {"a": {"0.5": 4.0, "+Inf": 10.0}}
    assert live.counts({"0.5": 4.0, "+Inf": 10.0}, [0.1, 0.5]).tolist() == [0, 4, 6]
    with pytest.raises(live.NoMetrics, match="make the reference anew"):
        live.counts({"0.7": 4.0, "+Inf": 10.0}, [0.1, 0.5])


# --- the command, on scored files

LABELS = ("toxic", "insult")


def write_scored(path: Path, rows: int, rude: float, russian: float = 0.0, seed: int = 1) -> Path:
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "score_toxic", "score_insult", "model_version"])
        for _ in range(rows):
            high = rng.random() < rude
            text = "привет всем" if rng.random() < russian else "a muslim wrote this"
            writer.writerow([text, 0.9 if high else 0.02, 0.3, 1])
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    made = Reference(
        model="toxicity",
        version="1",
        made="2026-01-01",
        source={"file": "x.csv", "sha256": "0", "comments": 5000},
        thresholds={"toxic": 0.5, "insult": 0.5},
        scores={"toxic": [0, 4500, *[0] * 8, 500, 0, 0, 0], "insult": [0, 0, 0, 0, 5000, *[0] * 9]},
        labelled={"toxic": [5000, 500], "insult": [5000, 0]},
        languages={"latin": [4900, 490], "ru": [100, 10]},
        identities={"muslim": [4900, 490]},
        identity_terms=["muslim"],
    )
    made.write(tmp_path / "reference.json")
    assert read_reference(tmp_path / "reference.json") == made
    return tmp_path / "reference.json"


def records(reference: Path, file: Path, *more: str) -> int:
    return main(["records", str(file), "--reference", str(reference), *more])


def found_in(text: str) -> dict[tuple[str, str], str]:
    return {(f["what"], f["group"]): f["verdict"] for f in json.loads(text)["findings"]}


def test_comments_as_before_are_steady(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_scored(tmp_path / "same.csv", 3000, 0.1, 0.02)
    assert records(reference, file, "--strict", "--json", "-") == 0
    found = found_in(capsys.readouterr().out)
    assert set(found.values()) == {"steady"}
    assert {
        ("score", "toxic"),
        ("language", ""),
        ("flag_rate", "identity muslim"),
        ("flag_rate", "language ru"),
    } <= set(found)


def test_decision_records_are_compared_from_a_time_on(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the gateway writes them: of this version, of a canary's, and some that are old."""
    info = ModelInfo("toxicity", "1", LABELS, {"toxic": 0.5, "insult": 0.5}, 128, 64, "int8")

    def made(number: int, version: str, at: str) -> Record:
        scores = {"toxic": 0.9 if number % 10 == 0 else 0.02, "insult": 0.3}
        result = Result(scores, (), False, "toxicity", version, "id")
        return replace(decided("hash", "a muslim wrote this", result, info), at=at)

    file = tmp_path / "decisions.sqlite"
    new, old = "2026-11-21T10:00:00.000+00:00", "2026-10-01T10:00:00.000+00:00"
    with Records(str(file), "k" * 16, keep_text=True) as written:
        written.add([made(n, "1", new) for n in range(1000)])
        written.add([made(0, "2", new) for _ in range(300)])
        written.add([made(0, "1", old) for _ in range(700)])
    assert records(reference, file, "--since", "2026-11", "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["comments"] == 1000 and "300 scored comments left out: another model or version" in report["notes"]
    assert ("flag_rate", "identity muslim") in {(f["what"], f["group"]) for f in report["findings"]}
    assert records(reference, file) == 1  # the old ones are all flagged
    assert records(reference, file, "--since", "2027") == 2
    assert "have none of this model since 2027" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:100])
    assert records(reference, file) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_span_is_a_time_ago() -> None:
    assert ago("0s") > ago("90m") > ago("2h") > ago("1d")
    with pytest.raises(InvalidInput, match="such as 12h"):
        ago("1 day")


def test_what_drifts_is_said_and_the_exit_code_tells(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_scored(tmp_path / "rude.csv", 3000, 0.45, 0.5)
    prom, out = tmp_path / "drift.prom", tmp_path / "drift.json"
    assert records(reference, file, "--json", str(out), "--prom", str(prom)) == 1
    assert "drifted" in capsys.readouterr().out
    found = found_in(out.read_text())
    assert {what for what, verdict in found.items() if verdict == "drifted"} == {
        *(("score", "toxic"), ("language", ""), ("flag_rate", "toxic")),
        *(("flag_rate", "language latin"), ("flag_rate", "language ru"), ("flag_rate", "identity muslim")),
    }
    text = prom.read_text()
    series = 'model="toxicity",version="1",what="flag_rate",group="toxic"'
    assert f"tritox_drift_verdict{{{series}}} 2\n" in text
    assert f"tritox_drift_flag_rate_reference{{{series}}} 0.1\n" in text


def test_half_way_is_said_and_only_strict_minds(reference: Path, tmp_path: Path) -> None:
    file = write_scored(tmp_path / "half.csv", 3000, 0.17, 0.02)
    assert records(reference, file) == 0
    assert records(reference, file, "--strict") == 1


def test_records_without_texts_leave_languages_and_identities_out(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    rows: list[dict[str, Any]] = [
        {"hash": f"{i}", "scores": {"toxic": 0.9 if i % 10 == 0 else 0.02, "insult": 0.3}} for i in range(1000)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert records(reference, file, "--column", "hash", "--no-texts", "--json", "-") == 0
    assert {group for _, group in found_in(capsys.readouterr().out)} == {"toxic", "insult"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nhello\n", "needs columns such as score_toxic"),
        ("text,score_toxic,score_insult\nhi,0.1,7\n", "no row with scores"),
        ("text,score_toxic,score_insult\nhi,0.1,0.1\n", "nothing could be compared"),
    ],
)
def test_what_cannot_be_compared_says_why(
    reference: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(content)
    assert records(reference, file) == 2
    assert message in capsys.readouterr().err


def test_a_reference_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text('{"format": 1}')
    assert records(tmp_path / "r.json", tmp_path / "x.csv") == 2
    assert "is no reference" in capsys.readouterr().err
    assert main(["live", "--reference", str(tmp_path / "missing.json")]) == 2
    assert "python -m serve.drift reference" in capsys.readouterr().err


def test_metrics_of_another_version_are_not_compared(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("")
    text = 'tritox_encoder_score_bucket{label="toxic",le="+Inf",model="toxicity_encoder",version="2"} 9000\n'
    (tmp_path / "b.txt").write_text(text)
    command = ["live", "--reference", str(reference), "--before", str(tmp_path / "a.txt")]
    assert main([*command, "--metrics", str(tmp_path / "b.txt")]) == 2
    assert "is this version served?" in capsys.readouterr().out
