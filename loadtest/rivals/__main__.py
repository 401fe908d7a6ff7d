"""``python -m loadtest.rivals``: install other servers beside the project, and convert a model for them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from loadtest.limit import Encoder
from loadtest.rivals import environments
from loadtest.rivals.convert import convert
from train.artifact import InvalidArtifact

INT8 = "model_quantized.onnx"  # where infinity and optimum look


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.rivals", description="Other servers, for the benchmark.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    install = commands.add_parser("install", help=f"make their virtual environments in {environments.FOLDER.name}/")
    install.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(environments.NAMES)}; by default all")
    make = commands.add_parser("convert", help="write an artifact as a folder that they can load")
    make.add_argument("--artifact", type=Path, default=Path("artifacts/starter"))
    make.add_argument("--repository", type=Path, default=Path("model_repository"), help="with the same model in INT8")
    make.add_argument("--model", default="toxicity", help="its name there")
    make.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.command == "install":
        return _install(arguments.names or environments.NAMES)
    try:
        convert(arguments.artifact, arguments.out)
        add_int8(arguments.repository, arguments.model, arguments.out)
    except (InvalidArtifact, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _install(names: list[str] | tuple[str, ...]) -> int:
    failed = 0
    for name in names:
        if name not in environments.NAMES:
            sys.stderr.write(f"error: there is no environment {name!r}, only {', '.join(environments.NAMES)}\n")
            return 2
        print(f"installing {name} into {environments.python(name).parents[1]} ...", flush=True)
        reason = environments.install(name)
        if reason:
            failed += 1
            sys.stderr.write(f"{name} cannot be installed here:\n{reason}\n")
    return 1 if failed else 0


def add_int8(repository: Path, model: str, folder: Path) -> None:
    """Put the graph that this server runs into ``folder``, rewired for transformers.

    :raises OSError: when there is no such model, or the rivals' environment cannot do it.
    """
    python = environments.python("web")
    if not python.is_file():
        raise OSError(f"the INT8 form is made in the rivals' environment, which is not there: {environments.INSTALL}")
    graph = Encoder.of(repository, model).graph
    command = [str(python), str(Path(__file__).with_name("int8.py")), str(graph), str(folder / INT8)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{graph} could not be rewired for rivals: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    sys.exit(main())
