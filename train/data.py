"""Comments and their labels: read, check, split; and what rows in one format say about the labels of another."""

from __future__ import annotations

import hashlib
import random
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.artifact import LABELS
from train.config import DataConfig

MULTI_LABEL, SINGLE_LABEL = "multi_label_classification", "single_label_classification"

RARE_ROWS = 10
"""Combinations of labels with fewer rows are drawn from together: a share of so few is nought or all."""


class InvalidData(ValueError):
    """A data file lacks a column or holds a value that cannot be trained on."""


@dataclass(frozen=True)
class Fraction:
    """A label's column of fractions in [0, 1], such as the share of annotators who saw it; 0 and 1 are such too.

    :param optional: where the column is absent, so is the label.
    """

    column: str
    optional: bool = False


@dataclass(frozen=True)
class OneOf:
    """A label that holds where ``column`` has one of ``values``, out of all that are ``allowed`` (``None``: any)."""

    column: str
    values: tuple[Any, ...]
    allowed: tuple[Any, ...] | None = None


Rule = str | Fraction | OneOf
"""How a label is read; a plain ``str`` is a column of 0 and 1."""


@dataclass(frozen=True)
class Format:
    """What the columns of a file mean.

    :param text: the column of the comments.
    :param labels: for each label, in order, the column or rule it is read by.
    :param identities: columns of fractions that say which identity a comment mentions; kept where present.
    """

    text: str
    labels: Mapping[str, Rule]
    problem_type: str = MULTI_LABEL
    identities: tuple[str, ...] = ()


CLASSES = (0, 1, 2)

IDENTITIES: tuple[str, ...] = (
    *("male", "female", "transgender", "other_gender"),
    *("heterosexual", "homosexual_gay_or_lesbian", "bisexual", "other_sexual_orientation"),
    *("christian", "jewish", "muslim", "hindu", "buddhist", "atheist", "other_religion"),
    *("black", "white", "asian", "latino", "other_race_or_ethnicity"),
    *("physical_disability", "intellectual_or_learning_disability", "psychiatric_or_mental_illness"),
    "other_disability",
)
"""The identity columns of Civil Comments."""

FORMATS: dict[str, Format] = {
    # Jigsaw Toxic Comment Classification Challenge, 2018
    "jigsaw": Format("comment_text", {label: label for label in LABELS}),
    # Borkan et al., "Nuanced metrics for measuring unintended bias", 2019
    "civil_comments": Format(
        "comment_text",
        {
            "toxic": Fraction("target"),
            "severe_toxic": Fraction("severe_toxicity", optional=True),
            "obscene": Fraction("obscene", optional=True),
            "threat": Fraction("threat", optional=True),
            "insult": Fraction("insult", optional=True),
            "identity_hate": Fraction("identity_attack", optional=True),
        },
        identities=IDENTITIES,
    ),
    # Davidson et al., "Automated hate speech detection and the problem of offensive language", 2017:
    # class 0 is hate speech, 1 offensive language, 2 neither
    "davidson": Format(
        "tweet",
        {"regular": OneOf("class", (2,), CLASSES), "hate": OneOf("class", (0, 1), CLASSES)},
        SINGLE_LABEL,
    ),
    "davidson_three": Format(
        "tweet",
        {
            "hate": OneOf("class", (0,), CLASSES),
            "offensive": OneOf("class", (1,), CLASSES),
            "neither": OneOf("class", (2,), CLASSES),
        },
        SINGLE_LABEL,
    ),
    # Kirk et al., "Hatemoji", 2022
    "hatemoji": Format(
        "text",
        {"regular": OneOf("label_gold", (0,), (0, 1)), "hate": OneOf("label_gold", (1,), (0, 1))},
        SINGLE_LABEL,
    ),
}
"""Formats that ``data.format`` of a recipe may name."""

EXTRA_FORMATS: tuple[str, ...] = (*FORMATS, "paradetox")
"""Formats of further training rows. ParaDetox (Logacheva et al., 2022) pairs toxic sentences with neutral rewrites."""

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
SENTENCE_WORDS = 3, 30
"""The shortest and the longest of :func:`sentences`."""

TEXT_COLUMNS = ("comment_text", "tweet", "text", "test_case", "toxic")
"""The columns of comments in all files that :func:`read_texts` knows, the first one found counts."""

PARADETOX_NEUTRAL = ("neutral1", "neutral2", "neutral3")

_HATE = {"hate": 1.0, "offensive": 0.0, "neither": 0.0, "regular": 0.0}
_REGULAR = {"hate": 0.0, "offensive": 0.0, "neither": 1.0, "regular": 1.0}

# What a row's own label says about the labels of other formats; what is not named stays unknown.
IMPLIED: dict[str, dict[str, dict[str, float]]] = {
    "davidson_three": {
        "hate": {"toxic": 1.0, "identity_hate": 1.0, **_HATE},
        "offensive": {"toxic": 1.0},
        "neither": {**dict.fromkeys(LABELS, 0.0), **_REGULAR},
    },
    "hatemoji": {
        "hate": {"toxic": 1.0, "identity_hate": 1.0, **_HATE},
        "regular": {"identity_hate": 0.0},  # not hateful, but it may well be rude
    },
}


@dataclass(frozen=True)
class Comments:
    """Texts and their labels.

    :param labels: FP32, 0 or 1; in training rows also NaN, where unknown. *Shape:* ``(comments, labels)``
    :param identities: by identity, whether each comment mentions it. *Shape:* ``(comments,)`` each
    """

    texts: list[str]
    labels: np.ndarray
    identities: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def joined(self, other: Comments) -> Comments:
        """These comments and ``other``'s behind them; which identities ``other``'s mention is not known."""
        identities = None
        if self.identities is not None:
            unknown = np.zeros(len(other), bool)
            identities = {name: np.concatenate([mask, unknown]) for name, mask in self.identities.items()}
        return Comments(self.texts + other.texts, np.concatenate([self.labels, other.labels]), identities)


@dataclass(frozen=True)
class Splits:
    """Disjoint sets of comments: to fit, to tune thresholds and calibration on, and to report on.

    :param dropped_duplicates: training rows left out because their text also stands in validation or tuning.
    :param contradicting: training texts, kept, that stand there more than once and with different labels.
    """

    train: Comments
    tuning: Comments
    validation: Comments
    labels: tuple[str, ...]
    problem_type: str
    dropped_duplicates: int
    contradicting: int = 0


def read_splits(path: Path, config: DataConfig, seed: int, extra: Sequence[tuple[str, Path]] = ()) -> Splits:
    """Validation, tuning and training rows, with no text on two sides once case, punctuation and spaces are ignored.

    Random draws are stratified: by class, or by combination of labels, the rare ones together.

    :param path: a CSV (also ``.gz``) or Parquet file in the format that ``config`` names.
    :param extra: further rows for training alone, as (name in :data:`EXTRA_FORMATS`, file). What they say about the
        labels here is taken, other labels are NaN; single-label rows whose class is unknown are left out.
    :raises InvalidData: for a missing file or column, a label that is not allowed, or a text that is missing, naming
        the first such row (counted from 1, the header not counted); or when a set would be empty.
    """
    rows = _read(path, format_of(config), config.threshold)
    rng = np.random.default_rng(seed)
    keys = _keys(rows.texts)
    strata = _strata(rows.labels)
    everything = np.arange(len(rows.texts))

    held_out = _validation_mask(rows.table, config.validation, strata, rng)
    leaked = ~held_out & _in(keys, keys[held_out])
    rest = ~held_out & ~leaked
    tuning = _tuning_mask(rows.table, config.tuning, strata, rest, rng)
    leaked |= rest & ~tuning & _in(keys, keys[tuning])
    fit = rest & ~tuning & ~leaked
    for name, mask in (("training", fit), ("tuning", tuning), ("validation", held_out)):
        if not mask.any():
            raise InvalidData(f"the {name} set is empty: check data.validation and data.tuning in the recipe")

    train, validation, tuned = (rows.comments(everything[mask]) for mask in (fit, held_out, tuning))
    dropped = int(leaked.sum())
    reported = keys[held_out | tuning]
    for name, extra_path in extra:
        added = _read_extra(name, extra_path, rows.names, rows.problem_type, config.threshold)
        clean = np.flatnonzero(~_in(_keys(added.texts), reported))
        dropped += len(added) - len(clean)
        train = train.joined(Comments([added.texts[i] for i in clean], added.labels[clean]))
    return Splits(train, tuned, validation, rows.names, rows.problem_type, dropped, _contradicting(train))


def read_test_sentences(path: Path, columns: Sequence[str], judged: str, allowed: Sequence[str]) -> pd.DataFrame:
    """A CSV file (also ``.gz``) of test sentences, every value as text.

    :param columns: must be there. :param judged: the column that holds one of ``allowed`` in every row.
    :raises InvalidData: for a missing file or column, or another value, with its row counted from 1.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except FileNotFoundError:
        raise InvalidData(
            f"no test sentences at {path}: give a CSV file with the columns {', '.join(columns)}"
        ) from None
    except (ValueError, OSError) as error:
        raise InvalidData(f"{path} could not be read as CSV: {error}") from None
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise InvalidData(f"{path} lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    wrong = np.flatnonzero(~table[judged].isin(allowed).to_numpy())
    if len(wrong):
        found = table[judged].iloc[int(wrong[0])]
        raise InvalidData(f"{path}, row {wrong[0] + 1}: {judged} is {found!r}, must be {' or '.join(allowed)}")
    return table


def read_texts(path: Path) -> list[str]:
    """The texts of a file in any known format, without its labels: to be labelled by a teacher, for example.

    Empty ones are left out. ParaDetox gives its toxic sentences and their neutral rewrites.

    :raises InvalidData: for a missing file, or one without a column of :data:`TEXT_COLUMNS`.
    """
    table = _read_table(path, (*TEXT_COLUMNS, *PARADETOX_NEUTRAL))
    column = next((c for c in TEXT_COLUMNS if c in table.columns), None)
    if column is None:
        raise InvalidData(
            f"{path} has no column of texts: it has {', '.join(map(str, table.columns))}, needs one of "
            f"{', '.join(TEXT_COLUMNS)}"
        )
    columns = [column, *(c for c in PARADETOX_NEUTRAL if column == "toxic" and c in table.columns)]
    texts = [t for c in columns for t in table[c].tolist() if isinstance(t, str) and t.strip()]
    if not texts:
        raise InvalidData(f"{path} holds no texts: its column {column} is empty")
    return texts


def sentences(texts: Sequence[str], labels: np.ndarray, count: int, seed: int) -> list[str]:
    """So many sentences of comments, or as many as there are: half of them from comments with a label.

    :param labels: *Shape:* ``(comments, labels)``
    """
    if not count:
        return []
    rng = random.Random(seed)
    flagged = (np.nan_to_num(labels) > 0.5).any(axis=1)
    pools: tuple[list[str], list[str]] = ([], [])
    seen = {text_key(text) for text in texts}
    for text, own in zip(texts, flagged, strict=True):
        for sentence in SENTENCE_END.split(text):
            key = text_key(sentence)
            if SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1] and key not in seen:
                seen.add(key)
                pools[bool(own)].append(sentence.strip())
    for pool in pools:
        rng.shuffle(pool)
    rude = pools[1][: max(count // 2, count - len(pools[0]))]
    return rude + pools[0][: count - len(rude)]


def format_of(config: DataConfig) -> Format:
    """The format that a recipe's ``data`` section names or, under ``columns``, spells out.

    :raises InvalidData: for an unknown format, or a column mapping that cannot be read.
    """
    if config.columns is None:
        if config.format not in FORMATS:
            raise InvalidData(f"data.format is {config.format!r}, must be one of {', '.join(FORMATS)}; or map columns")
        chosen = FORMATS[config.format]
        problem_type = config.problem_type or chosen.problem_type
        return Format(chosen.text, chosen.labels, problem_type, chosen.identities)
    text, labels = config.columns["text"], config.columns["labels"]
    if not isinstance(text, str) or not isinstance(labels, dict) or not labels:
        raise InvalidData(f"data.columns is {config.columns}, must be {{text: column, labels: {{label: column}}}}")
    problem_type = config.problem_type or MULTI_LABEL
    if problem_type == SINGLE_LABEL and len(labels) < 2:
        raise InvalidData(f"data.columns names the label {next(iter(labels))} alone, single-label data need at least 2")
    return Format(text, {str(label): _custom_rule(str(label), rule) for label, rule in labels.items()}, problem_type)


def text_key(text: str) -> str:
    """The text with case, punctuation and spaces taken out; the text itself where nothing else is left."""
    return re.sub(r"[\W_]+", "", text.lower()) or text


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class _Rows:
    """A whole file, read and checked."""

    table: pd.DataFrame
    texts: list[str]
    labels: np.ndarray
    names: tuple[str, ...]
    problem_type: str
    identities: dict[str, np.ndarray] = field(default_factory=dict)

    def comments(self, places: np.ndarray) -> Comments:
        identities = {name: mask[places] for name, mask in self.identities.items()}
        return Comments([self.texts[i] for i in places], self.labels[places], identities or None)


def _custom_rule(label: str, rule: object) -> Rule:
    """``column``, or ``{column, values}``."""
    if isinstance(rule, str):
        return Fraction(rule)
    if isinstance(rule, dict) and set(rule) == {"column", "values"} and isinstance(rule["values"], list):
        return OneOf(str(rule["column"]), tuple(rule["values"]))
    raise InvalidData(f"data.columns.labels.{label} is {rule!r}, must be a column's name or {{column, values: [...]}}")


def _read(path: Path, form: Format, threshold: float) -> _Rows:
    table = _read_table(path, (form.text,))
    rules = {
        label: rule
        for label, rule in form.labels.items()
        if not (isinstance(rule, Fraction) and rule.optional and rule.column not in table.columns)
    }
    columns = dict.fromkeys([form.text, *(r if isinstance(r, str) else r.column for r in rules.values())])
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise InvalidData(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}: set "
            f"data.format to one of {', '.join(FORMATS)}, or map the columns with data.columns"
        )
    texts = _texts(path, table, form.text)
    labels = np.stack([_label(path, table, rule, threshold) for rule in rules.values()], axis=1)
    if form.problem_type == SINGLE_LABEL:
        bad = np.flatnonzero(labels.sum(axis=1) != 1)
        if len(bad):
            raise InvalidData(
                f"{path}, row {bad[0] + 1}: {int(labels[bad[0]].sum())} of the labels {', '.join(rules)} hold, a "
                f"single-label comment has exactly 1 ({len(bad)} such rows); drop them, or set data.problem_type to "
                f"{MULTI_LABEL}"
            )
    identities = {
        name: _fractions(path, table, name, blank=0.0) >= 0.5 for name in form.identities if name in table.columns
    }
    return _Rows(table, texts, labels, tuple(rules), form.problem_type, identities)


def _read_table(path: Path, text_columns: Sequence[str]) -> pd.DataFrame:
    """A CSV or Parquet file as it is; columns of texts are not taken for numbers, nor the text ``NA`` for nothing."""
    if not path.is_file():
        raise InvalidData(f"no data file at {path}: give a CSV or Parquet file")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields in a row than in the header
                table = pd.read_csv(
                    path,
                    keep_default_na=False,
                    dtype=dict.fromkeys(text_columns, str),
                    index_col=False,
                    low_memory=False,
                )
    # pandas' and pyarrow's parse errors are ValueErrors; a .gz file that was cut short ends in the last two
    except (ValueError, OSError, pd.errors.ParserWarning, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} could not be read as {path.suffix or 'CSV'}: {error}") from None
    if table.empty:
        raise InvalidData(f"{path} holds no rows")
    return table


def _texts(path: Path, table: pd.DataFrame, column: str) -> list[str]:
    texts: list[str] = table[column].tolist()
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        raise InvalidData(f"{path}, row {bad[0] + 1}: {column} is missing or empty ({len(bad)} such rows); drop them")
    return texts


def _label(path: Path, table: pd.DataFrame, rule: Rule, threshold: float) -> np.ndarray:
    """*Shape:* ``(rows,)``, FP32, 0 or 1."""
    if isinstance(rule, str):
        numbers = _numbers(table, rule)
        _check(path, table, rule, np.isin(numbers, (0, 1)), "0 or 1")
    elif isinstance(rule, Fraction):
        numbers = _fractions(path, table, rule.column) >= threshold
    else:
        numbers = _equal(table[rule.column], rule.values)
        if rule.allowed is not None:
            good = _equal(table[rule.column], rule.allowed)
            _check(path, table, rule.column, good, "one of " + ", ".join(map(str, rule.allowed)))
        else:
            blank = table[rule.column].isna().to_numpy() | (table[rule.column].astype(str) == "").to_numpy()
            _check(path, table, rule.column, ~blank, "a class")
    return np.asarray(numbers, dtype=np.float32)


def _fractions(path: Path, table: pd.DataFrame, column: str, blank: float | None = None) -> np.ndarray:
    """Fractions in [0, 1]; ``blank`` stands for an empty field, where one is allowed. *Shape:* ``(rows,)``."""
    numbers = _numbers(table, column)
    if blank is not None:
        empty = table[column].isna().to_numpy() | (table[column].astype(str) == "").to_numpy()
        numbers = np.where(empty, blank, numbers)
    _check(path, table, column, (numbers >= 0) & (numbers <= 1), "0 or 1, or a fraction in between")
    return numbers


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """NaN where a value is no number. *Shape:* ``(rows,)``."""
    return np.asarray(pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64, na_value=np.nan))


def _check(path: Path, table: pd.DataFrame, column: str, good: np.ndarray, allowed: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        raise InvalidData(
            f"{path}, row {bad[0] + 1}: {column} is {table[column].iloc[bad[0]]!r}, must be {allowed} "
            f"({len(bad)} such rows); drop them or give them a label"
        )


def _equal(column: pd.Series, values: Sequence[Any]) -> np.ndarray:
    """Where ``column`` holds one of ``values``; numbers are compared as numbers. *Shape:* ``(rows,)``."""
    mask = np.zeros(len(column), bool)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    words = column.astype(str).to_numpy(object)
    for value in values:
        mask |= (numbers == value) if isinstance(value, (int, float)) else (words == str(value))
    return mask


def _validation_mask(
    table: pd.DataFrame, spec: dict[str, Any], strata: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """*Shape:* ``(rows,)``."""
    if "fraction" in spec:
        fraction = _share(spec["fraction"], "data.validation.fraction")
        return _drawn(strata, np.ones(len(table), bool), round(fraction * len(table)), rng)
    column, first, end = spec["column"], spec["from"], spec["to"]
    _needs_column(table, column, "data.validation.column", ", or set data.validation to {fraction: 0.1}")
    for name, value in (("from", first), ("to", end)):
        if not isinstance(value, (int, float)):
            raise InvalidData(f"data.validation.{name} is {value!r}, must be a number")
    numbers = _numbers(table, column)
    return np.asarray((numbers >= first) & (numbers < end))


def _tuning_mask(
    table: pd.DataFrame, spec: dict[str, Any], strata: np.ndarray, rest: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """*Shape:* ``(rows,)``."""
    candidates = rest.copy()
    for column, value in (spec.get("where") or {}).items():
        _needs_column(table, column, "data.tuning.where")
        candidates &= _equal(table[column], (value,))
    limit = int(candidates.sum()) - 1
    if "fraction" in spec:
        rows = round(_share(spec["fraction"], "data.tuning.fraction") * candidates.sum())
    else:
        rows = spec["rows"]
        if not isinstance(rows, int) or not 1 <= rows <= limit:
            raise InvalidData(f"data.tuning.rows is {rows}, must lie between 1 and {limit}, the rows to draw from")
    return _drawn(strata, candidates, rows, rng)


def _share(value: object, name: str) -> float:
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InvalidData(f"{name} is {value!r}, must lie between 0 and 1")
    return float(value)


def _needs_column(table: pd.DataFrame, column: str, where: str, remedy: str = "") -> None:
    if column not in table.columns:
        raise InvalidData(
            f"{where} names {column!r}, but the data has {', '.join(map(str, table.columns))}: name one of them{remedy}"
        )


def _strata(labels: np.ndarray) -> np.ndarray:
    """A number for each combination of labels, and one for all rare ones. *Shape:* ``(comments,)``."""
    _, strata, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    strata = strata.reshape(-1)
    return np.where(counts[strata] < RARE_ROWS, -1, strata)


def _drawn(strata: np.ndarray, candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the candidates at random, each stratum with its share of them. *Shape:* ``(rows,)``."""
    chosen = np.zeros(len(strata), bool)
    places = np.flatnonzero(candidates)
    if count == 0 or not len(places):
        return chosen
    values, sizes = np.unique(strata[places], return_counts=True)
    quotas = count * sizes / len(places)
    counts = np.floor(quotas).astype(int)
    most_cut = np.argsort(counts - quotas, kind="stable")
    counts[most_cut[: count - counts.sum()]] += 1
    for value, quota in zip(values, counts, strict=True):
        chosen[rng.choice(places[strata[places] == value], quota, replace=False)] = True
    return chosen


def _read_extra(name: str, path: Path, target: tuple[str, ...], problem_type: str, threshold: float) -> Comments:
    """Rows in the format ``name``, with what they say about the labels ``target``."""
    if name not in EXTRA_FORMATS:
        raise InvalidData(f"extra data have the format {name!r}, must be one of {', '.join(EXTRA_FORMATS)}")
    texts, known = _known(name, path, target, threshold)
    labels = np.full((len(texts), len(target)), np.nan, np.float32)
    for i, label in enumerate(target):
        if label in known:
            labels[:, i] = known[label]
    if problem_type == SINGLE_LABEL:
        sure = np.nansum(labels, axis=1) == 1
        labels[sure] = np.nan_to_num(labels[sure], nan=0.0)
    else:
        sure = ~np.isnan(labels).all(axis=1)
    if not sure.any():
        raise InvalidData(
            f"{path} in the format {name} says nothing about the labels {', '.join(target)}: leave it out"
        )
    kept = np.flatnonzero(sure)
    return Comments([texts[i] for i in kept], labels[kept])


def _known(name: str, path: Path, target: tuple[str, ...], threshold: float) -> tuple[list[str], dict[str, np.ndarray]]:
    """Texts, and by label what is known of them: 0, 1 or NaN. *Shape:* ``(comments,)`` each."""
    if name == "paradetox":
        return _paradetox(path)
    if name == "davidson" and set(target) != set(FORMATS[name].labels):
        name = "davidson_three"  # the same file, hate and offence apart
    rows = _read(path, FORMATS[name], threshold)
    own = {label: rows.labels[:, i] for i, label in enumerate(rows.names)}
    if set(rows.names) == set(target):
        return rows.texts, own
    if name in IMPLIED:
        return rows.texts, _implied({label: own[label] == 1 for label in own}, IMPLIED[name])
    # Jigsaw and Civil Comments. Other labels alone say neither hate nor regular: an insult may be one of either.
    states = {"hate": own.get("identity_hate", np.zeros(len(rows.texts))) == 1, "none": rows.labels.sum(axis=1) == 0}
    return rows.texts, {**_implied(states, {"hate": _HATE, "none": _REGULAR}), **own}


def _implied(states: dict[str, np.ndarray], says: dict[str, dict[str, float]]) -> dict[str, np.ndarray]:
    """By label, what the state that a comment is in says of it; NaN where nothing. *Shape:* ``(comments,)`` each."""
    known: dict[str, np.ndarray] = {}
    for state, mask in states.items():
        for label, value in says[state].items():
            known.setdefault(label, np.full(len(mask), np.nan, np.float32))[mask] = value
    return known


def _paradetox(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    table = _read_table(path, ("toxic", *PARADETOX_NEUTRAL))
    missing = [c for c in ("toxic", "neutral1") if c not in table.columns]
    if missing:
        raise InvalidData(
            f"{path} lacks the column {', '.join(missing)} of paradetox; it has {', '.join(map(str, table.columns))}"
        )
    toxic = _texts(path, table, "toxic")
    columns = [c for c in PARADETOX_NEUTRAL if c in table.columns]
    neutral = [t for c in columns for t in table[c].tolist() if isinstance(t, str) and t.strip()]
    return toxic + neutral, {"toxic": np.repeat(np.array([1, 0], np.float32), [len(toxic), len(neutral)])}


def _contradicting(comments: Comments) -> int:
    """How many texts, case and spaces apart, stand there more than once with a label that is 0 here and 1 there."""
    groups = pd.DataFrame(comments.labels).groupby([" ".join(text.lower().split()) for text in comments.texts])
    return int((groups.max() > groups.min()).any(axis=1).sum())


def _keys(texts: list[str]) -> np.ndarray:
    """*Shape:* ``(texts,)``, objects."""
    return np.array([text_key(text) for text in texts], dtype=object)


def _in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """*Shape:* ``(keys,)``."""
    held = set(others.tolist())
    return np.fromiter((key in held for key in keys), bool, len(keys))
