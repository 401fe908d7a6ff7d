"""Comments and their labels: read, check, split."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from train.artifact import LABELS
from train.config import DataConfig

TEXT_COLUMN = "comment_text"


class InvalidData(ValueError):
    """A data file lacks a column or holds a value that cannot be trained on."""


@dataclass(frozen=True)
class Comments:
    """Texts and their labels. ``labels`` is FP32, 0 or 1. *Shape:* ``(comments, labels)``."""

    texts: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Splits:
    """Disjoint sets of comments: to fit, to tune thresholds and calibration on, and to report on."""

    train: Comments
    tuning: Comments
    validation: Comments
    dropped_duplicates: int


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (also ``.gz``) or Parquet file with ``comment_text`` and one 0/1 column per label.

    :raises InvalidData: for a missing file or column, a label other than 0 or 1, or a text that is missing; the
        message names the first such row (counted from 1, the header not counted).
    """
    if not path.is_file():
        raise InvalidData(f"no data file at {path}: give a CSV or Parquet file in the Jigsaw format")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in LABELS})
    except (ValueError, OSError, UnicodeDecodeError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise InvalidData(f"{path} could not be read as {path.suffix or 'CSV'}: {error}") from None
    missing = [c for c in (TEXT_COLUMN, *LABELS) if c not in table.columns]
    if missing:
        raise InvalidData(f"{path} lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise InvalidData(f"{path} holds no rows")
    for label in LABELS:
        numbers = pd.to_numeric(table[label], errors="coerce")
        bad = np.flatnonzero(~numbers.isin([0, 1]).to_numpy())
        if len(bad):
            raise InvalidData(
                f"{path}, row {bad[0] + 1}: {label} is {table[label].iloc[bad[0]]!r}, must be 0 or 1 "
                f"({len(bad)} such rows); drop them or give them a label"
            )
        table[label] = numbers.astype(np.float32)
    bad = np.flatnonzero([not isinstance(t, str) for t in table[TEXT_COLUMN]])
    if len(bad):
        raise InvalidData(f"{path}, row {bad[0] + 1}: {TEXT_COLUMN} is missing ({len(bad)} such rows); drop them")
    return table


def split(table: pd.DataFrame, config: DataConfig, seed: int) -> Splits:
    """Validation, tuning and training rows, with no text on both sides once case, punctuation and spaces are ignored.

    :raises InvalidData: when a column that the split names is missing, or a set would be empty.
    """
    rng = np.random.default_rng(seed)
    held_out = _validation_rows(table, config, rng)
    keys = table[TEXT_COLUMN].map(text_key)
    leaked = ~held_out & keys.isin(set(keys[held_out])).to_numpy()
    rest = ~held_out & ~leaked
    candidates = rest.copy()
    for column, value in (config.tuning.get("where") or {}).items():
        _needs_column(table, column, "data.tuning.where")
        candidates &= (table[column] == value).to_numpy()
    rows = int(config.tuning["rows"])
    if rows < 1 or candidates.sum() <= rows:
        raise InvalidData(
            f"data.tuning.rows is {rows}, must lie between 1 and {int(candidates.sum()) - 1}, the rows to draw from"
        )
    tuning = np.zeros(len(table), bool)
    tuning[rng.choice(np.flatnonzero(candidates), rows, replace=False)] = True
    fit = rest & ~tuning & ~keys.isin(set(keys[tuning])).to_numpy()
    for name, mask in (("training", fit), ("validation", held_out)):
        if not mask.any():
            raise InvalidData(f"the {name} set is empty: check data.validation and data.tuning in the recipe")
    return Splits(_comments(table, fit), _comments(table, tuning), _comments(table, held_out), int(leaked.sum()))


def text_key(text: str) -> str:
    """The text with case, punctuation and spaces taken out; the text itself where nothing else is left."""
    return re.sub(r"[\W_]+", "", text.lower()) or text


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _validation_rows(table: pd.DataFrame, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    spec = config.validation
    if "fraction" in spec:
        fraction = float(spec["fraction"])
        if not 0 < fraction < 1:
            raise InvalidData(f"data.validation.fraction is {fraction}, must lie between 0 and 1")
        return np.asarray(rng.random(len(table)) < fraction)
    _needs_column(table, spec["column"], "data.validation.column")
    numbers = pd.to_numeric(table[spec["column"]], errors="coerce")
    return np.asarray((numbers >= spec["from"]) & (numbers < spec["to"]))


def _needs_column(table: pd.DataFrame, column: str, where: str) -> None:
    if column not in table.columns:
        raise InvalidData(f"{where} names {column!r}, but the data has {', '.join(map(str, table.columns))}")


def _comments(table: pd.DataFrame, mask: np.ndarray) -> Comments:
    return Comments(table.loc[mask, TEXT_COLUMN].tolist(), table.loc[mask, list(LABELS)].to_numpy(np.float32))
