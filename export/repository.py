"""Versions in a Triton model repository, and ``python -m export.repository``, which manages them.

A model is an ensemble and its parts, each a folder with version folders in it. One version is served: the ensemble's
``config.pbtxt`` names it, and the same version of every part. So a change of version is one renamed file, and whatever
happens before or after it, a server finds a whole version::

    parts load old and new ──▶ the ensemble names the new one ──▶ parts load the new one alone

A server that runs reads the files of a step when it is told to; ``promote(step=...)`` takes one at a time, and
``python -m serve.rollout`` tells the servers after each. A version may be *staged* meanwhile: the parts load it beside
the served one, and an ensemble of its own, ``<name>_candidate``, answers with it.

New version folders are made whole elsewhere and renamed into place. A lock keeps two writers apart.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from google.protobuf import text_format

from export.triton import (
    HEADER,
    TUNABLE,
    InvalidSettings,
    ServingSettings,
    candidate_name,
    ensemble,
    loaded_versions,
    model_names,
    read_settings,
    render,
    served_version,
)

REPORT = "export.json"
REFERENCE = "reference.json"
"""What comments and scores were like (`python -m serve.drift reference`): no server loads it, and it may come later."""
Step = Literal["parts", "whole", "alone"]
STEPS: tuple[Step, ...] = get_args(Step)
"""Of a change of version: the parts load old and new; the ensemble names the new one; the parts load that alone."""


class InvalidRepository(ValueError):
    """The repository is not what is asked for, or cannot be written to."""


@dataclass(frozen=True)
class Version:
    """One version of a model on disk.

    :param served: whether a server that starts now serves it.
    :param report: what its export measured, and where it comes from; ``None`` for the remains of an interrupted export.
    """

    number: int
    served: bool
    report: dict[str, Any] | None


class ModelVersions:
    """The versions of the model ``name`` in a ``repository`` folder."""

    def __init__(self, repository: Path, name: str) -> None:
        self.repository, self.name = repository, name

    @property
    def config(self) -> Path:
        return self.repository / self.name / "config.pbtxt"

    def report_file(self, number: int) -> Path:
        return self.repository / self.name / str(number) / REPORT

    def served(self) -> tuple[int, int | None]:
        """The served version and the one before it.

        :raises InvalidRepository: when there is no such model.
        """
        if not self.config.is_file():
            found = ", ".join(models_in(self.repository)) or "no model"
            raise InvalidRepository(f"{self.repository} has no model {self.name!r}; it has {found}: see --name")
        try:
            return served_version(self.config)
        except InvalidSettings as error:
            raise InvalidRepository(str(error)) from None

    def numbers(self) -> list[int]:
        """Every version that any part has a folder of, ascending."""
        folders = (f for name in self.all_names() for f in (self.repository / name).glob("*"))
        return sorted({int(f.name) for f in folders if f.is_dir() and f.name.isdigit()})

    def all_names(self) -> tuple[str, ...]:
        return model_names(self.name)

    def versions(self) -> list[Version]:
        """:raises InvalidRepository: when there is no such model."""
        served, _ = self.served()
        return [Version(n, n == served, self.read_report(n)) for n in self.numbers()]

    def read_report(self, number: int) -> dict[str, Any] | None:
        file = self.report_file(number)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def settings(self, number: int) -> ServingSettings:
        """:raises InvalidRepository: when there is no such whole version."""
        if not self.report_file(number).is_file():
            whole = [str(v.number) for v in self.versions() if v.report is not None]
            raise InvalidRepository(f"{self.name} has no version {number}; it has {', '.join(whole)}")
        return read_settings(self.report_file(number))

    def publish(self, settings: ServingSettings, staging: Path, report: dict[str, Any], promote: bool = True) -> int:
        """Give staged files the next version number.

        :param staging: a folder on the same file system, with a folder of files for each part; it is used up.
        :param report: written as ``export.json``, with the hashes of the files.
        :param promote: serve it from now on. The first version is served in any case.
        :returns: the number.
        :raises InvalidRepository: when the model is there with other labels, or as another kind of model.
        """
        names = model_names(self.name, settings.kind)
        self.repository.mkdir(exist_ok=True)
        with locked(self.repository):
            first = not self.config.is_file()
            if not first:
                self.check_like(settings)
            number = max(self.numbers(), default=0) + 1
            files = {
                f"{name}/{number}/{f.relative_to(staging / name)}": sha256(f)
                for name in names
                for f in sorted((staging / name).rglob("*"))
                if f.is_file()
            }
            (staging / self.name).mkdir(exist_ok=True)
            report = {"version": number, **report, "files": files}
            text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            (staging / self.name / REPORT).write_text(text, encoding="utf-8")
            # the ensemble last: until its version is there, nobody asks for the others
            for name in reversed(names):
                target = self.repository / name / str(number)
                config = render(settings, number)[name]
                if (self.repository / name).is_dir():
                    (staging / name).rename(target)
                    if first:  # an interrupted first export left the folder
                        self.write_config(name, config)
                else:  # a model folder without a config would stop a server: it appears whole
                    whole = staging / f"{name}.whole"
                    whole.mkdir()
                    (staging / name).rename(whole / str(number))
                    (whole / "config.pbtxt").write_text(config, encoding="utf-8")
                    whole.rename(self.repository / name)
            if promote and not first:
                self._promote(number)
        return number

    def check_like(self, settings: ServingSettings) -> None:
        """:raises InvalidRepository: unless a version with these settings can follow the served one."""
        served = self.settings(self.served()[0])
        for what in ("kind", "labels"):
            old, new = getattr(served, what), getattr(settings, what)
            if old != new:
                shown = [", ".join(value) if isinstance(value, tuple) else value for value in (old, new)]
                raise InvalidRepository(
                    f"the {what} of {self.name} here: {shown[0]}; of this artifact: {shown[1]}. Clients of {self.name} "
                    "rely on them: export under another --name"
                )

    def promote(self, number: int, steps: Sequence[Step] = STEPS) -> None:
        """Serve version ``number`` from now on.

        :param steps: these alone, where a server that runs is to follow each of them.
        :raises InvalidRepository: when there is no such whole version, or one of its files is missing or changed.
        """
        with locked(self.repository):
            self._check_whole(number)
            self._promote(number, steps)

    def _check_whole(self, number: int) -> None:
        wrong = self.check_files(number)
        if wrong:
            raise InvalidRepository(f"version {number} of {self.name} is damaged, it is not promoted: {wrong[0]}")

    def _promote(self, number: int, steps: Sequence[Step] = STEPS) -> None:
        settings = self.settings(number)
        old, before = self.served()
        previous = before if old == number else old
        if "parts" not in steps and "whole" in steps and number not in self._loaded():
            raise InvalidRepository(
                f"the parts of {self.name} do not load version {number}: take the step parts before the step whole"
            )
        whole, *parts = render(settings, number, also=[old, *self._also()], previous=previous).items()
        if "parts" in steps:
            for name, text in parts:
                self.write_config(name, text)
        if "whole" in steps:
            self.write_config(*whole)
        if "alone" in steps:
            if self.served()[0] != number:
                raise InvalidRepository(f"{self.name} serves version {old}: take the step whole before the step alone")
            for name, text in list(render(settings, number, also=self._also(), previous=previous).items())[1:]:
                self.write_config(name, text)

    def _loaded(self) -> set[int]:
        """The versions that the last of the parts loads."""
        return set(loaded_versions(self.repository / self.all_names()[-1] / "config.pbtxt"))

    def staged(self) -> int | None:
        """The version that is loaded beside the served one; ``None`` where none is."""
        config = self.repository / candidate_name(self.name) / "config.pbtxt"
        return served_version(config)[0] if config.is_file() else None

    def _also(self) -> list[int]:
        staged = self.staged()
        return [] if staged is None else [staged]

    def stage(self, number: int) -> None:
        """Let the parts load version ``number`` beside the served one, and ``<name>_candidate`` answer with it.

        :raises InvalidRepository: when it is the served one, there is no such whole version, or it is damaged.
        """
        with locked(self.repository):
            served, previous = self.served()
            if number == served:
                raise InvalidRepository(f"version {number} of {self.name} is the served one: stage another")
            self._check_whole(number)
            self._unstage()
            for name, text in list(render(self.settings(served), served, also=[number], previous=previous).items())[1:]:
                self.write_config(name, text)
            config = ensemble(self.settings(number), number)
            config.name = candidate_name(self.name)
            with staging_folder(self.repository) as staging:
                whole = staging / config.name
                (whole / str(number)).mkdir(parents=True)
                (whole / "config.pbtxt").write_text(f"{HEADER}{text_format.MessageToString(config)}", encoding="utf-8")
                whole.rename(self.repository / config.name)

    def unstage(self) -> None:
        """Take back :meth:`stage`, where anything is staged."""
        with locked(self.repository):
            self._unstage()

    def _unstage(self) -> None:
        # the ensemble first: it asks the parts
        shutil.rmtree(self.repository / candidate_name(self.name), ignore_errors=True)
        served, previous = self.served()
        for name, text in list(render(self.settings(served), served, previous=previous).items())[1:]:
            self.write_config(name, text)

    def configure(self, changes: Mapping[str, Any]) -> ServingSettings:
        """Serve the served version with other settings from now on; they stay with it.

        :param changes: by name, of :data:`export.triton.TUNABLE`.
        :returns: the settings that hold now.
        :raises InvalidRepository: for a name that is not one of them, or a value that cannot be.
        """
        unknown = [name for name in changes if name not in TUNABLE]
        if unknown:
            raise InvalidRepository(f"{unknown[0]!r} cannot be set; what can is {', '.join(TUNABLE)}")
        with locked(self.repository):
            number, previous = self.served()
            old = self.settings(number)
            try:
                settings = replace(old, **changes)
            except InvalidSettings as error:
                raise InvalidRepository(str(error)) from None
            report = {**(self.read_report(number) or {}), "settings": asdict(settings)}
            target = self.report_file(number)
            temporary = target.with_name(f".{REPORT}.new")
            temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(target)
            configs = list(render(settings, number, also=self._also(), previous=previous).items())
            if settings.max_batch_size > old.max_batch_size:
                configs.reverse()  # at no time does the ensemble take larger batches than its parts
            for name, text in configs:
                self.write_config(name, text)
        return settings

    def write_config(self, name: str, text: str) -> None:
        target = self.repository / name / "config.pbtxt"
        temporary = target.with_name(".config.pbtxt.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)

    def rollback(self) -> int:
        """Serve the version that was served before this one; returns its number.

        :raises InvalidRepository: when there was none, or it is gone.
        """
        served, previous = self.served()
        if previous is None:
            raise InvalidRepository(
                f"version {served} of {self.name} is the first that was served: nothing to go back to"
            )
        self.promote(previous)
        return previous

    def prune(self, keep: int) -> list[int]:
        """Remove old versions but the last ``keep``, the served one, the one to roll back to and those that a cascade
        sends comments to; returns what went.

        :raises InvalidRepository: for a negative ``keep``.
        """
        if keep < 0:
            raise InvalidRepository(f"--keep is {keep}, must be at least 0")
        with locked(self.repository):
            served, previous = self.served()
            whole = [v.number for v in self.versions() if v.report is not None]
            kept = {served, previous, *whole[len(whole) - keep :], *self.pinned()}
            gone = [n for n in self.numbers() if n not in kept]
            for number in gone:
                # the ensemble first: without its report it is no version any more, however this ends
                for name in self.all_names():
                    shutil.rmtree(self.repository / name / str(number), ignore_errors=True)
        return gone

    def pinned(self) -> set[int]:
        """Versions that a version of a cascade in this repository asks, without which it could answer nothing; and the
        staged one.
        """
        found = set(self._also())
        for file in self.repository.glob("*_cascade/*/settings.json"):
            encoder = json.loads(file.read_text(encoding="utf-8")).get("encoder", {})
            if encoder.get("model") == self.name:
                found.add(int(encoder["version"]))
        return found

    def check_files(self, number: int) -> list[str]:
        """What is wrong with a version's files, in words; nothing when all have the hashes of their export."""
        self.settings(number)  # that it exists
        report = self.read_report(number)
        assert report is not None
        wrong = []
        for name, expected in report.get("files", {}).items():
            file = self.repository / name
            if not file.is_file():
                wrong.append(f"{name} is missing")
            elif sha256(file) != expected:
                wrong.append(f"{name} has the SHA-256 {sha256(file)[:12]}..., at export it was {expected[:12]}...")
        expected_files = {*report.get("files", {}), *(f"{self.name}/{number}/{name}" for name in (REPORT, REFERENCE))}
        for name in self.all_names():
            for file in sorted((self.repository / name / str(number)).rglob("*")):
                relative = str(file.relative_to(self.repository))
                if file.is_file() and "__pycache__" not in file.parts and relative not in expected_files:
                    wrong.append(f"{relative} was not there at export")
        return wrong

    def check_configs(self) -> list[str]:
        """Configurations that are not what the served version's settings give."""
        number, previous = self.served()
        wrong = []
        for name, text in render(self.settings(number), number, self._also(), previous).items():
            file = self.repository / name / "config.pbtxt"
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                wrong.append(
                    f"{name}/config.pbtxt is not as version {number} was exported: promote it to write it anew"
                )
        return wrong


def models_in(repository: Path) -> list[str]:
    """The ensembles in a repository."""
    return sorted({f.parent.parent.name for f in repository.glob(f"*/*/{REPORT}")})


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A temporary folder beside the repository, on its file system: Triton would take a folder inside for a model.

    :raises InvalidRepository: when the repository's path is taken by a file, or cannot be written to.
    """
    if repository.exists() and not repository.is_dir():
        raise InvalidRepository(f"{repository} is a file: give --repository a folder")
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{repository.name}.staging.", dir=repository.resolve().parent))
    except OSError as error:
        raise InvalidRepository(f"cannot write beside {repository} ({error.strerror}): choose another") from None
    try:
        staging.chmod(0o755)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """One writer at a time. The lock is on the folder itself and ends with the process that holds it."""
    handle = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(versions: Sequence[Version]) -> str:
    """Versions for reading."""
    lines = [
        f"{'version':>7}  {'':6} {'precision':<9} {'target':<8} {'MB':>6} {'model':<8} {'exported':<17} {'commit':<8}"
    ]
    for v in versions:
        mark = "served" if v.served else ""
        if v.report is None:
            lines.append(f"{v.number:>7}  {mark:6} what an interrupted export left; `prune` removes it")
            continue
        settings, made = v.report["settings"], str(v.report.get("exported", ""))[:16].replace("T", " ")
        size = v.report.get("bytes", 0) / 1e6
        lines.append(
            f"{v.number:>7}  {mark:6} {settings['precision']:<9} {settings.get('target', 'cpu'):<8} {size:>6.1f} "
            f"{v.report.get('model_version') or '-':<8} {made:<17} {str(v.report.get('git_commit'))[:8]:<8}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.repository",
        description="Manage the versions of a model in a Triton model repository.",
        epilog="examples:\n"
        "  python -m export.repository list\n"
        "  python -m export.repository rollback          serve the version before this one\n"
        "  python -m export.repository promote 3\n"
        "  python -m export.repository prune --keep 2\n"
        "  python -m export.repository verify            are all files as they were exported?\n"
        "  python -m export.repository configure instances=4 max_batch_tokens=256\n"
        "\nA server that runs goes on with the version that it loaded: restart it, or change the version with\n"
        "`python -m serve.rollout promote|rollback`, without a failed request.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=what, description=what)
        c.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
        c.add_argument("--name", default="toxicity", help="model name that clients ask for (default: %(default)s)")
        return c

    listing = command("list", "versions, and which one is served")
    listing.add_argument("--json", action="store_true", help="for programs")
    promote = command("promote", "serve a version, once its files are verified")
    promote.add_argument("version", type=int)
    promote.add_argument(
        "--step", choices=STEPS, help="this step alone; `python -m serve.rollout` takes them, and tells the servers"
    )
    stage = command("stage", "load a version beside the served one, as NAME_candidate; `python -m serve.rollout` does")
    stage.add_argument("version", type=int)
    command("unstage", "take back stage")
    command("rollback", "serve the version that was served before this one")
    prune = command(
        "prune", "remove old versions; never the served one, the one to roll back to, nor one that a cascade asks"
    )
    prune.add_argument("--keep", type=int, default=2, help="how many of the newest stay (default: %(default)s)")
    verify = command("verify", "compare every file with its hash at export, and the configurations with the settings")
    verify.add_argument("version", type=int, nargs="?", help="this one alone (default: all)")
    configure = command("configure", "other serving settings for the served version; `loadtest.tune` finds good ones")
    configure.add_argument(
        "changes", type=_change, nargs="*", metavar="SETTING=NUMBER", help=f"of {', '.join(TUNABLE)}; none shows them"
    )
    return p


def _change(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not value.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form SETTING=NUMBER, such as instances=4")
    return name, int(value)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    model = ModelVersions(arguments.repository, arguments.name)
    try:
        if arguments.command == "list" and arguments.json:
            served, previous = model.served()
            whole = [v.number for v in model.versions() if v.report is not None]
            parts = [name for name in model.all_names()[1:] if (model.repository / name).is_dir()]
            staged = model.staged()
            found = {"served": served, "previous": previous, "staged": staged, "versions": whole, "parts": parts}
            print(json.dumps(found))
        elif arguments.command == "list":
            print(table(model.versions()))
        elif arguments.command == "promote":
            model.promote(arguments.version, [arguments.step] if arguments.step else STEPS)
            if arguments.step is None:
                print(f"version {arguments.version} of {model.name} is served from the next start on")
        elif arguments.command == "stage":
            model.stage(arguments.version)
            print(f"version {arguments.version} of {model.name} is staged as {candidate_name(model.name)}")
        elif arguments.command == "unstage":
            model.served()  # that it exists
            model.unstage()
        elif arguments.command == "rollback":
            print(f"version {model.rollback()} of {model.name} is served from the next start on")
        elif arguments.command == "prune":
            model.served()  # that it exists
            gone = model.prune(arguments.keep)
            print(f"removed version {', '.join(map(str, gone))}" if gone else "nothing to remove")
        elif arguments.command == "configure":
            settings = model.configure(dict(arguments.changes))
            print("\n".join(f"{name}={getattr(settings, name)}" for name in TUNABLE))
        else:
            return verify(model, arguments.version)
    except InvalidRepository as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def verify(model: ModelVersions, number: int | None) -> int:
    """Print what is wrong; 1 when anything is."""
    numbers = [number] if number is not None else [v.number for v in model.versions() if v.report is not None]
    wrong = model.check_configs() if number is None else []
    for n in numbers:
        found = model.check_files(n)
        wrong += found
        print(f"version {n}: {'damaged' if found else 'every file is as it was exported'}")
    for line in wrong:
        sys.stderr.write(f"wrong: {line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
