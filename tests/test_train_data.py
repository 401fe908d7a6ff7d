from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS

from train.config import DataConfig, InvalidConfig, read_recipe
from train.data import InvalidData, read_table, split, text_key


def test_csv_gz_and_parquet_give_the_same_rows(tmp_path: Path, comments_csv: Path) -> None:
    table = read_table(comments_csv)
    table.to_csv(tmp_path / "c.csv.gz", index=False)
    table.to_parquet(tmp_path / "c.parquet")
    for name in ("c.csv.gz", "c.parquet"):
        other = read_table(tmp_path / name)
        assert other["comment_text"].tolist() == table["comment_text"].tolist()
        assert np.array_equal(other[list(LABELS)], table[list(LABELS)])


def table_of(texts: list[str], **columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"comment_text": texts, **{label: [0.0] * len(texts) for label in LABELS}, **columns})


def test_texts_such_as_null_stay_texts(tmp_path: Path) -> None:
    table_of(["NA", "null", ""]).to_csv(tmp_path / "c.csv", index=False)
    assert read_table(tmp_path / "c.csv")["comment_text"].tolist() == ["NA", "null", ""]


def test_bad_labels_and_missing_texts_are_named_with_their_row(tmp_path: Path) -> None:
    table_of(["a", "b", "c"], threat=[0, 2, ""]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(InvalidData, match=r"row 2: threat is .*2.* must be 0 or 1 \(2 such rows\)"):
        read_table(tmp_path / "c.csv")
    table_of(["a", None]).to_parquet(tmp_path / "c.parquet")  # type: ignore[list-item]
    with pytest.raises(InvalidData, match="row 2: comment_text is missing"):
        read_table(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [("text\nhello\n", "lacks the column comment_text, toxic.*it has text"), ("", "could not be read")],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(InvalidData, match=message):
        read_table(tmp_path / "c.csv")


def test_no_text_stands_on_both_sides() -> None:
    texts = ["Same text!", "other", "third one", "same   TEXT", "more", "other.", "last"]
    table = table_of(texts, row_index=[0, 1, 2, 3, 4, 5, 6], sampling=["natural"] * 7)
    config = DataConfig({"column": "row_index", "from": 0, "to": 2}, {"rows": 1, "where": {"sampling": "natural"}})
    splits = split(table, config, seed=1)
    assert splits.validation.texts == ["Same text!", "other"]
    assert splits.dropped_duplicates == 2
    parts = [{text_key(t) for t in part.texts} for part in (splits.train, splits.tuning, splits.validation)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert sorted(splits.train.texts + splits.tuning.texts) == ["last", "more", "third one"]


def test_tuning_rows_are_natural_ones_and_the_seed_decides(comments_csv: Path) -> None:
    table = read_table(comments_csv)
    config = DataConfig({"column": "row_index", "from": 0, "to": 100}, {"rows": 50, "where": {"sampling": "natural"}})
    first, again, other = (split(table, config, seed) for seed in (1, 1, 2))
    assert first.tuning.texts == again.tuning.texts != other.tuning.texts
    natural = set(table.loc[table["sampling"] == "natural", "comment_text"])
    assert len(first.tuning) == 50 and set(first.tuning.texts) <= natural


def test_split_errors_hold_value_limit_and_column(comments_csv: Path) -> None:
    table = read_table(comments_csv)
    with pytest.raises(InvalidData, match=r"data\.tuning\.rows is 9999, must lie between 1 and"):
        split(table, DataConfig({"fraction": 0.1}, {"rows": 9999}), 1)
    with pytest.raises(InvalidData, match="names 'where_from', but the data has"):
        split(table, DataConfig({"fraction": 0.1}, {"rows": 5, "where": {"where_from": 1}}), 1)
    with pytest.raises(InvalidData, match="validation set is empty"):
        split(table, DataConfig({"column": "row_index", "from": -5, "to": 0}, {"rows": 5}), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {pretrained: x, poolin: mean}", "encoder has the unknown key poolin; it may hold pretrained"),
        ("encoder: {}", "exactly one of `pretrained` and `config`"),
        ("encoder: {pretrained: x}\ntrain: {batch_size: 1.5}", r"train\.batch_size is 1\.5, must be a whole number"),
        ("encoder: {pretrained: x}\ntrain: {epochs: 0}", r"train\.epochs is 0, must be above 0"),
        ("encoder: {pretrained: x}\ntrain: {learning_rate: fast}", "must be a number"),
        ("encoder: {pretrained: x, pooling: max}", "pooling is 'max', must be one of mean, cls"),
        ("encoder: {config: {hidden_size: 8}}", "lacks `model_type`"),
        ("encoder: {pretrained: x}\ndata: {validation: {column: a}}", "needs column, from, to; or fraction"),
        ("model: {}", "the recipe has the unknown key model"),
        ("- a", "must hold the sections encoder, data, train"),
        ("a: [", "is not YAML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_shipped_recipes_can_be_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    recipes = sorted((Path(__file__).parent.parent / "train/recipes").glob("*.yaml"))
    assert [r.stem for r in recipes] == ["compact", "minilm"]
    for recipe in recipes:
        read_recipe(recipe)
    with pytest.raises(InvalidConfig, match=r"no recipe at .*none\.yaml: .*minilm\.yaml"):
        read_recipe(tmp_path / "none.yaml")
