from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from train.artifact import Labels
from train.bias import identity_bias
from train.evaluate import by_length, curves, worst_errors
from train.hatecheck import Cases, judge
from train.metrics import MULTI_LABEL, SINGLE_LABEL, evaluate
from train.report import bar_plot, html, line_plot, write_html

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page and refuses tags that do not match, ids used twice, and anything that the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(k in ("src", "href", "onload", "onclick") for k, _ in attributes), (tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def whole_result(problem_type: str = MULTI_LABEL) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    names = ("regular", "hate")
    truth = np.eye(2)[rng.integers(0, 2, 200)]
    scores = np.clip(0.4 * truth + 0.6 * rng.random((200, 2)), 0, 1)
    labels = Labels(names, {"regular": 0.5, "hate": 0.3456})
    texts = [f"<script>alert({i})</script> & a comment" + " x" * i for i in range(200)]
    cases = Cases(["a", "b"], np.array([True, False]), ["slur_h", "quote_nh"], ["women", ""])
    groups = {"women": rng.random(200) < 0.4, "<men>": rng.random(200) < 0.01}
    areas = {"off": 0.9, "on": 0.95, "drop_off": 0.05, "drop_on": 0.0}
    return {
        "model": {"name": "a & b", "version": "1.2.0", "kind": "linear", "parameters": 1000, "size_bytes": 2_500_000},
        "data": {"file": "train.csv", "sha256": "f00d", "validation_sha256": "beef", "train": 10},
        "training": {"seed": 17, "seconds": 12.3, "machine": "a box", "git_commit": "abc", "versions": {"numpy": "1"}},
        "recipe": {"linear": {"c": 1.0, "word_ngrams": [1, 3]}, "train": {"seed": 17}},
        "machine": "another box",
        "git_commit": "def",
        "validation": evaluate(scores, truth, names, labels.thresholds, problem_type),
        "length": by_length(texts, scores, truth, labels, problem_type),
        "curves": {name: curves(scores[:, i], truth[:, i]) for i, name in enumerate(names)},
        "hatecheck": {"cases": {"labels": ["hate"], **judge(np.array([True, True]), np.array([0.9, 0.8]), cases)}},
        "bias": {"labels": ["hate"], **identity_bias(scores[:, 1], truth[:, 1], groups, 0.5)},
        "obfuscation": {"comments": 200, "seed": 1, "mean_roc_auc": {"clean": areas, "leet": {**areas, "off": None}}},
        "examples": worst_errors(texts, scores, truth, labels, problem_type),
    }


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, SINGLE_LABEL])
def test_the_page_is_whole_and_loads_nothing(problem_type: str) -> None:
    result = whole_result(problem_type)
    text = html(result)
    page = Page(text)
    assert "http" not in text and "url(" not in text and "@import" not in text
    for title in ("Labels", "Curves", "Calibration", "Decisions", "HateCheck", "Identity bias", "Obfuscation", "Error"):
        assert title in page.text, title
    for value in ("a & b 1.2.0", "f00d", "beef", "abc", "def", "a box", "2.5 MB", "slur_h", "linear.c", "[1, 3]"):
        assert value in page.text, value
    for name in ("regular", "hate"):
        assert f"{result['validation']['labels'][name]['roc_auc']:.4f}" in page.text
    assert ("as regular" in page.text) == (problem_type == SINGLE_LABEL)


def test_what_readers_of_the_page_need() -> None:
    page = Page(html(whole_result()))
    assert page.all("html") == [{"lang": "en"}]
    assert any(a.get("name") == "viewport" for a in page.all("meta"))
    drawings = [a for a in page.all("svg") if "aria-hidden" not in a]
    assert len(drawings) == len(page.all("figure")) == len(page.all("figcaption")) > 5
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))


def test_comments_cannot_become_markup() -> None:
    text = html(whole_result())
    assert "<script" not in text and "&lt;script&gt;alert(" in text and "<men>" not in text
    assert "Do not publish" in text


def test_parts_that_were_not_measured_are_left_out() -> None:
    starter = json.loads((Path(__file__).parent.parent / "train/results/starter.json").read_text())
    page = Page(html(starter))
    area = f"{starter['validation']['mean_roc_auc']:.4f}"
    assert area in page.text and "HateCheck" not in page.text and "Error analysis" not in page.text
    without = {k: v for k, v in whole_result().items() if k != "examples"}
    assert "script" not in html(without)


def test_drawings_are_well_formed_and_to_scale() -> None:
    drawn = line_plot("t <&>", [("a", [0, 1], [0, 0.5])], "x", "y", diagonal=True, mark=0.25)
    svg = next(iter(ElementTree.fromstring(drawn)))
    points = next(e for e in svg if e.tag == "polyline").get("points")
    assert points == "48.0,276.0 408.0,143.0"
    bars = ElementTree.fromstring(bar_plot("t", [("a", 0.5, "r", True), ("b", None, "r", False)], ("p", "q")))
    assert [float(r.get("width", "")) for r in bars.iter("rect")] == [100.0, 0.0]
    assert [t.text for t in bars.iter("text")] == ["a", "50.0%", "b", "-"]


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    result = whole_result()
    write_html(result, tmp_path / "deep/report.html")
    assert (tmp_path / "deep/report.html").read_text() == html(result)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]
