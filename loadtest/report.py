"""A run's outcome: as a table for people, as a JSON file for comparing."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from loadtest.slo import Measured, Verdict
from loadtest.tally import Tally


def table(measured: Measured, verdicts: Sequence[Verdict]) -> str:
    """One line for each objective: what it asks, what was measured, ``ok`` or ``MISSED``."""
    lines = verdict_lines(verdicts)
    lines.append(
        f"{measured.requests} requests in {measured.duration_s:.1f} s, {measured.failures} failed; "
        f"{measured.requests_per_s:.1f} requests/s, {measured.comments_per_s:.1f} comments/s"
    )
    lines += [f"{count} x {name}" for name, count in sorted(measured.errors.items())]
    if not measured.requests:
        lines.append("no request was made: run for longer, or with more users")
    return "\n".join(lines)


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    width = max([20, *(len(v.name) + 1 for v in verdicts)])
    lines = [f"{'objective':<{width}}{'target':>12}{'measured':>12}"]
    for v in verdicts:
        sign = ">=" if v.name.startswith("min_") else "<="
        value = "-" if v.measured is None else f"{v.measured:.4g}"
        lines.append(f"{v.name:<{width}}{f'{sign} {v.target:g}':>12}{value:>12}  {'ok' if v.met else 'MISSED'}")
    return lines


def origin() -> dict[str, Any]:
    """When, from which code and on which machine a result was measured."""
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
    }


def result(measured: Measured, verdicts: Sequence[Verdict], met: bool, about: dict[str, Any]) -> dict[str, Any]:
    """The content of a result file: ``about`` the run, where it ran, and the numbers."""
    return {
        **origin(),
        **about,
        "slo_met": met,
        "slo": [asdict(v) for v in verdicts],
        "measured": asdict(measured),
    }


SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)


def distribution(tally: Tally) -> dict[str, Any]:
    """How latency is spread, and how it went over time: what a page draws."""
    return {
        "latency_error": tally.latency_ms.error,
        "percentiles_ms": {f"{100 * share:g}": tally.latency_ms.percentile(share) for share in SHARES},
        "timeline": tally.timeline(),
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write so that a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """As :func:`write_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def insert(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the page's ``<!-- name -->`` and ``<!-- /name -->``.

    :raises ValueError: when the page has no such place.
    """
    old = page.read_text(encoding="utf-8")
    place = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
    new, places = re.subn(place, lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"{page} must hold <!-- {name} --> and <!-- /{name} --> once, has them {places} times")
    write_text(page, new)


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except FileNotFoundError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` when the work tree differs; ``None`` outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
