"""What a candidate decides otherwise: counted per label, per identity that a comment names, and per language.

No comment is kept, so that a report can be shown to anyone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client import Result
from serve.gateway import languages
from serve.identities import Identities

_identities = Identities()


@dataclass
class Group:
    """Comments of a kind.

    :param flipped: of them, those with another decision on any label.
    :param flagged, unflagged: decisions that came or went; a comment may have several.
    """

    comments: int = 0
    flipped: int = 0
    flagged: int = 0
    unflagged: int = 0

    def add(self, flagged: int, unflagged: int) -> None:
        self.comments += 1
        self.flipped += bool(flagged or unflagged)
        self.flagged += flagged
        self.unflagged += unflagged

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("comments", "flipped", "flagged", "unflagged")}


@dataclass
class Flips:
    """Comments that two versions scored.

    :param language: assumed where a text's script says nothing.
    """

    language: str = "en"
    every: Group = field(default_factory=Group)
    labels: dict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    identities: dict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    languages: dict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    shifts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def rate(self) -> float:
        """The share of comments with another decision on any label."""
        return self.every.flipped / self.every.comments if self.every.comments else 0.0

    def add(self, text: str, served: Result, candidate: Result) -> None:
        came = set(candidate.flagged) - set(served.flagged)
        went = set(served.flagged) - set(candidate.flagged)
        self.every.add(len(came), len(went))
        for label, score in served.scores.items():
            self.labels[label].add(label in came, label in went)
            self.shifts[label] += candidate.scores[label] - score
        for term in _identities.named(text):
            self.identities[term].add(len(came), len(went))
        self.languages[languages.detect(text, self.language)].add(len(came), len(went))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; groups with the most flips first, labels in the model's order."""

        def listed(groups: Mapping[str, Group]) -> dict[str, dict[str, int]]:
            order = sorted(groups, key=lambda name: (-groups[name].flipped, -groups[name].comments, name))
            return {name: groups[name].to_dict() for name in order}

        labels: dict[str, dict[str, float]] = {
            name: {**group.to_dict(), "mean_shift": round(self.shifts[name] / group.comments, 6)}
            for name, group in self.labels.items()
        }
        return {
            **self.every.to_dict(),
            "labels": labels,
            "identities": listed(self.identities),
            "languages": listed(self.languages),
        }


def added(reports: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Reports of several gateways as one."""
    total: dict[str, Any] = {}
    for report in reports:
        for key, value in report.items():
            if isinstance(value, Mapping):
                total[key] = added([total.get(key, {}), value])
            elif key != "mean_shift":
                total[key] = total.get(key, 0) + value
        if "mean_shift" in report:
            before, own = total.get("comments", 0) - report["comments"], report["comments"]
            mean = total.get("mean_shift", 0.0) * before + report["mean_shift"] * own
            total["mean_shift"] = round(mean / (before + own), 6) if before + own else 0.0
    return total


def table(report: Mapping[str, Any], most: int = 10) -> str:
    """A report for reading.

    :param most: identities that are shown.
    """
    lines = [f"{'':24} {'comments':>9} {'other decision':>15} {'now flagged':>12} {'no more':>9} {'mean shift':>11}"]

    def row(name: str, group: Mapping[str, Any]) -> None:
        share = f" ({group['flipped'] / group['comments']:.2%})" if group["comments"] else ""
        shift = f"{group['mean_shift']:+.4f}" if "mean_shift" in group else ""
        lines.append(
            f"{name:24} {group['comments']:>9} {str(group['flipped']) + share:>15} {group['flagged']:>12} "
            f"{group['unflagged']:>9} {shift:>11}"
        )

    row("any label", report)
    for name, group in report["labels"].items():
        row(f"  {name}", group)
    for what in ("languages", "identities"):
        if report[what]:
            lines.append(f"{what} (any label):")
        for name, group in list(report[what].items())[:most]:
            row(f"  {name}", group)
        if len(report[what]) > most:
            lines.append(f"  and {len(report[what]) - most} more, with no more flips than these")
    return "\n".join(lines)
