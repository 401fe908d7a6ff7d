"""Virtual environments for the rivals: one for those that get along, one for infinity, whose pins are its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".rivals"
INSTALL = "python -m loadtest.rivals install"
NAMES = ("web", "infinity")


def of(rival: str) -> str:
    """The environment that a rival runs in."""
    return "infinity" if rival.startswith("infinity") else "web"


def python(name: str) -> Path:
    return FOLDER / name / "bin" / "python"


def requirements(name: str) -> Path:
    return HERE / f"requirements-{name}.txt"


def install(name: str) -> str | None:
    """Make the environment anew; returns why that failed, or ``None``."""
    folder = FOLDER / name
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python(name)), "-m", "pip", "install", "--quiet", "-r", str(requirements(name))],
    ]
    for command in commands:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            python(name).unlink(missing_ok=True)  # half an environment would look like a whole one
            return "\n".join(done.stderr.strip().splitlines()[-8:])
    return None


def versions(name: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of packages in an environment, as far as they are installed."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    done = subprocess.run([str(python(name)), "-c", code], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else {}
    return {package: found[package] for package in packages if package in found}
