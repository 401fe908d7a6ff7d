from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from export import near_empty
from loadtest import tune
from loadtest.contenders import configure
from loadtest.tune import Trial, main, steps

pytestmark = pytest.mark.triton


@pytest.mark.slow  # most of a minute
def test_the_value_that_is_faster_is_written_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "r"
    near_empty.write(ROOT / "model_repository", repository)
    before = configure(repository, "toxicity", {"max_batch_tokens": 128})
    # half a second of waiting for more requests cannot win, and nobody may choose it
    configure(repository, "toxicity", {"queue_delay_us": 500_000})
    order = ["--repository", str(repository), "--rounds", "1", "--seconds", "0.7", "--requests", "1", "--clients", "4"]
    monkeypatch.setattr(tune, "steps", lambda cores: [[{"queue_delay_us": 0}]])
    assert main([*order, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert configure(repository, "toxicity", {})["queue_delay_us"] == 500_000
    monkeypatch.setattr(tune, "steps", lambda cores: [[{"queue_delay_us": 0}, {"queue_delay_us": 500_000}]])
    out = tmp_path / "tuned.json"
    assert main([*order, "--out", str(out)]) == 0
    assert configure(repository, "toxicity", {}) == before
    result = json.loads(out.read_text())
    assert result["chosen"]["queue_delay_us"] == 0
    fast, slow = (row["comments_per_s"]["1"] for row in result["steps"][0])
    assert fast > 5 * slow


def test_what_cannot_be_searched_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repository", str(tmp_path)]) == 2
    assert "has no model 'toxicity'" in capsys.readouterr().err
    assert main(["--comments", "3", "--requests", "16"]) == 2
    assert "the corpus has 3" in capsys.readouterr().err


def test_settings_without_an_answer_cannot_win() -> None:
    assert Trial({}, rates={1: [100.0], 16: []}).overall() == 0.0
    assert Trial({}, rates={1: [4.0], 16: [9.0]}).overall() == pytest.approx(6)
    for cores in (1, 2, 16):
        shapes = steps(cores)[0]
        assert {"instances": cores, "intra_op_threads": 1} in shapes
        assert all(s["instances"] * s["intra_op_threads"] <= cores for s in shapes)
