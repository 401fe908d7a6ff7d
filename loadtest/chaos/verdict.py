"""What a scenario found, whether that is well, and the table of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.chaos.callers import Call

LEAST_CALLS = 20
"""Fewer say nothing."""
QUIET_S = 1.0
"""So long before the end of a scenario callers must be served well, or they count as never served well again."""


@dataclass(frozen=True)
class Limits:
    """What a scenario is held to.

    :param grpc_errors: at callers with the client's retries; ``None``: any number, as long as each says to come again.
    :param http_errors: so for callers of HTTP, who send each request once.
    :param recovery_s: until callers are served well. :param whole_s: until nothing is missing any more.
    """

    grpc_errors: int | None = 0
    http_errors: int | None = 0
    recovery_s: float = 3.0
    whole_s: float = 30.0


@dataclass(frozen=True)
class Check:
    """Something that must hold beside what callers see, and what was seen of it."""

    what: str
    held: bool
    said: str = ""


@dataclass
class Record:
    """What one scenario came to.

    :ivar what: was done. :ivar calls: of golden comments. :ivar wrong: with a wrong score. :ivar hung: beyond their
        deadline. :ivar errors: by way. :ivar unclear: of these, those that do not tell callers to come again.
    :ivar slowest_s: of calls that ended. :ivar recovery_s: ``None``: callers were not served well again.
    :ivar whole_s: ``None``: something was missing to the end. :ivar compared: golden comments that were scored again
        afterwards, by every way.
    :ivar skipped: why it could not be tried here.
    """

    name: str
    what: str
    limits: Limits
    calls: int = 0
    wrong: int = 0
    hung: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    unclear: int = 0
    slowest_s: float = 0.0
    recovery_s: float | None = None
    whole_s: float | None = None
    compared: int = 0
    compared_wrong: int = 0
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0
    skipped: str | None = None

    def missed(self) -> list[str]:
        """What did not hold."""
        limits, found = self.limits, []
        if self.calls < LEAST_CALLS:
            found.append(f"only {self.calls} calls, of {LEAST_CALLS} at least")
        if self.wrong or self.compared_wrong:
            found.append(f"{self.wrong} calls with a wrong score, {self.compared_wrong} wrong ones afterwards")
        if not self.compared:
            found.append("no golden comment was scored afterwards")
        if self.hung:
            found.append(f"{self.hung} calls went beyond their deadline")
        if self.unclear:
            found.append(f"{self.unclear} errors do not tell callers to come again")
        for way, most in (("grpc", limits.grpc_errors), ("http", limits.http_errors)):
            count = self.errors.get(way, 0)
            if most is not None and count > most:
                found.append(f"{count} errors at callers of {way}, allowed are {most}")
        for what, seconds, most_s in (
            ("callers were served well", self.recovery_s, limits.recovery_s),
            ("the fleet was whole", self.whole_s, limits.whole_s),
        ):
            if seconds is None or seconds > most_s:
                after = "never" if seconds is None else f"after {seconds:.1f} s"
                found.append(f"{what} {after}, allowed are {most_s:g} s")
        return found + [f"not so: {check.what} ({check.said})" for check in self.checks if not check.held]

    @property
    def verdict(self) -> str:
        """``held``, ``missed`` or ``skipped``."""
        return "skipped" if self.skipped else "missed" if self.missed() else "held"

    def see(self, calls: Sequence[Call], since: float, until: float) -> None:
        """Take what callers saw.

        :param since: when they should have been served well; recovery counts from then. :param until: when it ended.
        """
        self.calls = len(calls)
        self.wrong = sum(call.wrong is not None for call in calls)
        self.hung = sum(call.hung for call in calls)
        self.errors = dict(Counter(call.way for call in calls if call.error is not None))
        self.unclear = sum(not call.clear for call in calls)
        self.slowest_s = max((call.took_s for call in calls if math.isfinite(call.took_s)), default=0.0)
        said = Counter(text for call in calls if (text := call.error or call.wrong))
        self.examples = dict(said.most_common(5))
        self.recovery_s = recovery(calls, since, until)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "missed": [] if self.skipped else self.missed(), "verdict": self.verdict}


def recovery(calls: Sequence[Call], since: float, until: float) -> float | None:
    """Seconds from ``since`` to the end of the last call that was not served well; ``None`` where such a call ended
    less than a second before ``until``, or nobody was served well after it.
    """
    last = max((min(call.began + call.took_s, until) for call in calls if call.bad), default=since)
    if last <= since:
        last = since
    elif last > until - QUIET_S:
        return None
    return last - since if any(not call.bad and call.began >= last for call in calls) else None


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result file, for docs."""

    def seconds(value: float | None, limit: float) -> str:
        return "never" if value is None else f"{value:.1f} s (≤ {limit:g})"

    def errors(found: Mapping[str, int], way: str, most: int | None) -> str:
        return f"{found.get(way, 0)} (any)" if most is None else f"{found.get(way, 0)} (≤ {most})"

    lines = [
        "| what was done | calls | wrong scores | beyond the deadline | errors, gRPC | errors, HTTP "
        "| callers well again | fleet whole again | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    below: list[str] = []
    for each in result["scenarios"]:
        limits = each["limits"]
        if each["skipped"]:
            lines.append(f"| {each['what']} | | | | | | | | skipped: {each['skipped']} |")
            continue
        cells = [
            each["what"],
            str(each["calls"]),
            str(each["wrong"] + each["compared_wrong"]),
            str(each["hung"]),
            errors(each["errors"], "grpc", limits["grpc_errors"]),
            errors(each["errors"], "http", limits["http_errors"]),
            seconds(each["recovery_s"], limits["recovery_s"]),
            seconds(each["whole_s"], limits["whole_s"]),
            "ok" if each["verdict"] == "held" else f"**missed:** {'; '.join(each['missed'])}",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        said = [f"{check['what']}{': ' + check['said'] if check['said'] else ''}" for check in each["checks"]]
        if said or each["notes"]:
            below.append(f"- **{each['what']}:** {'; '.join([*said, *each['notes']])}.")
    machine, commit = result["machine"], (result["commit"] or "unknown")[:12]
    compared = sum(each["compared"] for each in result["scenarios"])
    lines += [
        "",
        f"{compared} golden comments were scored again afterwards, at the door, at the gateway and at each replica. "
        f"{machine['cpu']}, {machine['cores']} cores, {result['seconds']:.0f} s in all; commit {commit}; "
        f"`{result['command']}`.",
    ]
    if below:
        lines += ["", "What was seen beside:", "", *below]
    return "\n".join(lines)
