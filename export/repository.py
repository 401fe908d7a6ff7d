"""Versions in a Triton model repository, written so that a server never reads half of one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InvalidRepository(ValueError):
    """The repository folder cannot be written to as it is."""


def next_version(repository: Path, names: tuple[str, ...]) -> int:
    """One more than the highest version of any of the models; 1 where there is none."""
    versions = [int(f.name) for name in names for f in (repository / name).glob("*") if f.is_dir() and f.name.isdigit()]
    return max(versions, default=0) + 1


@contextmanager
def new_version(repository: Path, names: tuple[str, ...]) -> Iterator[tuple[int, Path]]:
    """Stage one version of several models, and publish it when the block ends well.

    The block gets the version number and a staging folder with ``<model>/<version>/`` in it for every model, and writes
    there the version's files and each ``<model>/config.pbtxt``. Publishing renames version folders into place in the
    order of ``names``, then replaces the configurations. The staging folder lies beside the repository, on the same
    file system: Triton would take anything inside it for a model. When the block raises, the repository is as it was.

    :raises InvalidRepository: when the repository's path is taken by a file.
    """
    if repository.exists() and not repository.is_dir():
        raise InvalidRepository(f"{repository} is a file: give --repository a folder")
    repository.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{repository.name}.staging.", dir=repository.parent))
    try:
        version = next_version(repository, names)
        for name in names:
            (staging / name / str(version)).mkdir(parents=True)
        yield version, staging
        for name in names:
            (repository / name).mkdir(parents=True, exist_ok=True)
            (staging / name / str(version)).rename(repository / name / str(version))
        for name in names:
            (staging / name / "config.pbtxt").replace(repository / name / "config.pbtxt")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
