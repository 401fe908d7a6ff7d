"""``python -m loadtest.client_cost`` beside its stub server: all that it measures, in little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.client_cost import main


def test_all_ways_are_measured_for_both_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/cost.json"
    small = ("--seconds", "0.2", "--rounds", "1", "--callers", "8", "--batch", "4", "--comment-us", "500")
    code = main([*small, "--json", str(out)])
    result = json.loads(out.read_text())
    for kind in ("threads", "asyncio"):
        found = result[kind]
        for way in ("batches", "joined", "single"):
            assert 0 < found[way]["comments_per_s"] <= 1 / 500e-6 * 1.2  # no faster than the server
            assert found[way]["cpu_us"] > 0
            (turn,) = result["turns"][f"{kind} {way}"]
            assert turn["comments"] / turn["seconds"] == pytest.approx(found[way]["comments_per_s"])
        assert found["joined_to_batches"] == pytest.approx(
            found["joined"]["comments_per_s"] / found["batches"]["comments_per_s"]
        )
    met = result["import_s"] <= 0.5 and all(
        result[kind]["joined_to_batches"] >= 0.7 and result[kind]["batches"]["cpu_us"] <= 60
        for kind in ("threads", "asyncio")
    )
    assert code == (0 if met else 1)
    assert "joined reach" in capsys.readouterr().out
    assert result["machine"]["cores"] and result["command"].startswith("python -m loadtest.client_cost --seconds 0.2")


def test_options_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--batch", "0"])
    assert "--batch is 0, must be at least 1" in capsys.readouterr().err
