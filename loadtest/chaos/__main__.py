"""``python -m loadtest.chaos``: break a running fleet in one way after the other, and see what its callers see.

Everything is real: Tritons with mutual TLS, each with a repository of its own, Envoy with the configuration that ships,
the gateway. All the while callers of gRPC and of HTTP ask for the golden comments, whose scores are known. Whatever is
done, no score may be wrong and no call may go beyond its deadline; what else must hold stands with each scenario.

The model's encoder is nearly empty, so that a score is right or wrong, and never nearly right, and so that a small
machine has room for a fleet; only the overload takes the model as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client import ToxicityError
from loadtest import report
from loadtest.chaos.callers import Callers, Golden, check_all, read_golden
from loadtest.chaos.fleet import ChaosFailed, Fleet, fleet, until
from loadtest.chaos.scenarios import SCENARIOS, Scenario, Skip, Stage, faketime, small_disk
from loadtest.chaos.verdict import Record, markdown
from loadtest.contenders import ContenderFailed, configure
from loadtest.traffic import whole
from serve import certificates
from serve.server import ServeError

BEFORE_S, AFTER_S = 1.0, 2.0
"""Callers ask for so long before a fault and after the fleet is whole again."""
INT8_TOLERANCE = 0.1
"""INT8's scores move with the comments that are scored beside: what the tests of the starter model allow, too."""
DISK_MB = 8.0


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def play(scenario: Scenario, running: Fleet, golden: Golden, idle: int, clock: Path | None) -> Record:
    """Run one scenario on a fleet that is whole."""
    record = Record(scenario.name, scenario.what, scenario.limits)
    stage = Stage(running, golden, idle, clock)
    start = time.monotonic()
    callers = Callers(running, golden)
    callers.start()
    try:
        time.sleep(BEFORE_S)
        stage.fault()
        try:
            scenario.run(stage)
        except Skip as skip:
            record.skipped = str(skip)
        except (ChaosFailed, ToxicityError, OSError, ValueError, IndexError) as error:
            stage.check("the fault could be caused", False, f"{type(error).__name__}: {error}")
        if until(running.whole, scenario.limits.whole_s) is not None:
            record.whole_s = time.monotonic() - stage.ended
        time.sleep(AFTER_S)
        end = time.monotonic()
    finally:
        calls = callers.stop()
    record.see(calls, stage.began if scenario.despite else stage.ended, end)
    record.compared, wrong, silent = check_all(running, golden)
    record.compared_wrong = len(wrong)
    if silent:
        stage.check("everybody answers afterwards", False, "; ".join(silent)[:400])
    record.checks, record.notes = stage.checks, [*stage.notes, *wrong[:3]]
    record.took_s = time.monotonic() - start
    return record


def near_empty(source: Path, folder: Path) -> Path:
    """A repository whose scores are exact, with as few processes as there can be."""
    from export import near_empty

    near_empty.write(source, folder)
    configure(folder, "toxicity", {"instances": 1, "tokenizers": 1})
    return folder


def perform(scenarios: Sequence[Scenario], source: Path, replicas: int, idle: int, scratch: Path) -> list[Record]:
    """All of them, a fleet for each kind, and a new one where a scenario left it broken.

    :raises ChaosFailed: when a fleet does not start.
    """
    records: list[Record] = []
    left = list(scenarios)
    light: Path | None = None
    number = 0
    while left:
        kind = left[0].needs
        clock, environment = None, {}
        number += 1
        folder = scratch / f"fleet{number}"
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            if kind == "starter":
                repository, tolerance, count = source, INT8_TOLERANCE, min(replicas, 2)
            else:
                light = light or near_empty(source, scratch / "near-empty")
                repository, tolerance, count = light, None, replicas
            if kind == "clock":
                library = faketime()
                if library is None:
                    for scenario in [each for each in left if each.needs == kind]:
                        left.remove(scenario)
                        why = "the package libfaketime, which sets clocks, is not installed (extra chaos)"
                        records.append(Record(scenario.name, scenario.what, scenario.limits, skipped=why))
                        announce(records[-1])
                    continue
                count, clock = min(replicas, 2), scratch / "clock"
                clock.write_text("+0\n", encoding="utf-8")
                environment = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock)}
                environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
            disk = folder / "disk"
            stack.enter_context(small_disk(disk, DISK_MB))
            say(f"starting {count} replicas, Envoy and the gateway ({kind}) ...")
            running = stack.enter_context(fleet(repository, count, folder, disk, environment))
            golden = read_golden(repository, tolerance=tolerance)
            while left and left[0].needs == kind:
                scenario = left.pop(0)
                say(f"{scenario.name} ...")
                records.append(play(scenario, running, golden, idle, clock))
                announce(records[-1])
                if records[-1].whole_s is None:
                    break  # the next one is to begin with a fleet that is whole
    return records


def announce(record: Record) -> None:
    if record.skipped:
        say(f"  skipped: {record.skipped}")
        return
    recovery = "never" if record.recovery_s is None else f"{record.recovery_s:.1f} s"
    whole_again = "never" if record.whole_s is None else f"{record.whole_s:.1f} s"
    say(
        f"  {record.calls} calls, {record.wrong + record.compared_wrong} wrong, {record.hung} beyond their deadline, "
        f"errors {record.errors or 'none'}; callers well after {recovery}, fleet whole after {whole_again}; "
        f"took {record.took_s:.0f} s"
    )
    for check in record.checks:
        say(f"  {'ok    ' if check.held else 'MISSED'} {check.what}{': ' + check.said if check.said else ''}")
    for note in record.notes:
        say(f"  {note}")
    for text, count in record.examples.items():
        say(f"  {count} × {text[:200]}")
    for missed in record.missed():
        say(f"  MISSED: {missed}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.chaos",
        description="Start a fleet (Tritons, Envoy, the gateway), break it in one way after the other, and check what "
        "callers see. Exits with 0 when every scenario held, 1 when one did not, 2 when nothing could be said. A "
        "scenario that this machine cannot play is skipped with its reason; --strict takes that for missed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = [scenario.name for scenario in SCENARIOS]
    p.add_argument("--scenario", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    p.add_argument("--list", action="store_true", help="list the scenarios, and do nothing")
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="of the model")
    p.add_argument("--replicas", type=whole, default=3, help="at least 2; the overload and the clock take 2")
    p.add_argument("--idle", type=whole, default=10_000, help="idle connections at the door, a tenth of it elsewhere")
    p.add_argument("--folder", type=Path, help="keep logs and repositories here; by default they are removed")
    p.add_argument("--strict", action="store_true", help="a scenario that was skipped did not hold")
    p.add_argument("--json", type=Path, help="file to write the result to")
    p.add_argument("--table", type=Path, metavar="FILE", help="break nothing: write this result's table into --page")
    p.add_argument("--page", type=Path, default=Path("docker/CHAOS.md"), help="that has a place for the table")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.list:
        for scenario in SCENARIOS:
            sys.stdout.write(f"{scenario.name:<20}{scenario.what}\n")
        return 0
    try:
        if arguments.table is not None:
            content = json.loads(arguments.table.read_text(encoding="utf-8"))
            report.insert(arguments.page, "chaos", markdown(content))
            return 0
        if arguments.replicas < 2:
            raise ValueError(f"--replicas is {arguments.replicas}, must be at least 2: one of them is broken")
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        wanted = [s for s in SCENARIOS if not arguments.scenario or s.name in arguments.scenario]
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            if arguments.folder is None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-chaos-")))
            else:
                scratch = arguments.folder
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            records = perform(wanted, arguments.repository, arguments.replicas, arguments.idle, scratch.resolve())
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: this needs the package {error.name}: {certificates.INSTALL}\n")
        return 2
    except (ChaosFailed, ServeError, ContenderFailed, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    result: dict[str, Any] = {
        **report.origin(),
        "command": shlex.join(["python", "-m", "loadtest.chaos", *(sys.argv[1:] if argv is None else argv)]),
        "seconds": time.monotonic() - start,
        "scenarios": [record.to_json() for record in records],
    }
    if arguments.json:
        report.write_json(arguments.json, result)
    sys.stdout.write(markdown(result) + "\n")
    verdicts = [record.verdict for record in records]
    say(f"{verdicts.count('held')} held, {verdicts.count('missed')} missed, {verdicts.count('skipped')} skipped")
    return 1 if "missed" in verdicts or (arguments.strict and "skipped" in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
