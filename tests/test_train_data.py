from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS

from train.artifact import PROBLEM_TYPES
from train.config import DataConfig, InvalidConfig, read_recipe, shipped_recipes
from train.data import InvalidData, Splits, format_of, read_splits, read_texts, sentences, text_key

BY_INDEX = DataConfig(
    validation={"column": "row_index", "from": 0, "to": 2}, tuning={"rows": 1, "where": {"sampling": "natural"}}
)


def jigsaw(texts: list[Any], **columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"comment_text": texts, **{label: [0] * len(texts) for label in LABELS}, **columns})


def many(rows: int, positives: int, **columns: list[object]) -> pd.DataFrame:
    return jigsaw([f"text {i}" for i in range(rows)], toxic=[int(i < positives) for i in range(rows)], **columns)


def davidson(rows: int = 30) -> pd.DataFrame:
    return pd.DataFrame({"class": [i % 3 for i in range(rows)], "tweet": [f"tweet {i}" for i in range(rows)]})


def written(folder: Path, table: pd.DataFrame, name: str = "c.csv") -> Path:
    path = folder / name
    table.to_parquet(path) if name.endswith(".parquet") else table.to_csv(path, index=False)
    return path


def known(splits: Splits, prefix: str) -> dict[str, list[float]]:
    """Texts that begin with ``prefix`` and their labels, NaN as -1."""
    rows = zip(splits.train.texts, np.nan_to_num(splits.train.labels, nan=-1.0), strict=True)
    return {text: labels.tolist() for text, labels in rows if text.startswith(prefix)}


def test_csv_gz_and_parquet_give_the_same_splits(tmp_path: Path, comments_csv: Path) -> None:
    table = pd.read_csv(comments_csv)
    paths = [comments_csv, *(written(tmp_path, table, name) for name in ("c.csv.gz", "c.parquet"))]
    first, *others = (read_splits(path, DataConfig(), 3) for path in paths)
    assert first.labels == LABELS and first.train.labels.dtype == np.float32
    for other in others:
        for part in ("train", "tuning", "validation"):
            assert getattr(first, part).texts == getattr(other, part).texts
            assert np.array_equal(getattr(first, part).labels, getattr(other, part).labels)


def test_texts_such_as_null_or_numbers_stay_texts(tmp_path: Path) -> None:
    texts = ["NA", "null", "007", "1.50", *(str(i) for i in range(20))]
    splits = read_splits(written(tmp_path, jigsaw(texts)), DataConfig(tuning={"rows": 2}), 1)
    assert sorted(splits.train.texts + splits.tuning.texts + splits.validation.texts) == sorted(texts)


@pytest.mark.parametrize(
    ("table", "config", "message"),
    [
        (jigsaw(["a", "b", "c"], threat=[0, 2, ""]), {}, r"row 2: threat is .*2.*must be 0 or 1 \(2 such rows\)"),
        (jigsaw(["a", "b"], toxic=[0, 0.5]), {}, r"row 2: toxic is .*0\.5.*, must be 0 or 1 \(1"),
        (jigsaw(["a", "b"], toxic=[0, np.inf]), {}, "row 2: toxic is .*inf.*, must be 0 or 1"),
        (jigsaw(["a", "", " "]), {}, r"row 2: comment_text is missing or empty \(2 such rows\)"),
        (davidson().assign(**{"class": 7}), {"format": "davidson"}, "row 1: class is .*7.*must be one of 0, 1, 2"),
        (
            davidson(),
            {},
            "lacks the column comment_text, toxic.*; it has class, tweet: set data.format to one of jigsaw",
        ),
        (
            pd.DataFrame({"comment_text": ["a", "b"], "target": [0.2, 1.2]}),
            {"format": "civil_comments"},
            r"row 2: target is .*1\.2.*a fraction",
        ),
        (
            pd.DataFrame({"comment_text": ["a", "b"], "target": [0.2, 0.2], "male": ["", "x"]}),
            {"format": "civil_comments"},
            "row 2: male is 'x'",
        ),
        (jigsaw(["a"]), {"problem_type": PROBLEM_TYPES[1]}, "row 1: 0 of the labels toxic, .*exactly 1"),
        (jigsaw([]), {}, "holds no rows"),
        (jigsaw(["a"]), {"format": "jigsow"}, "data.format is 'jigsow', must be one of jigsaw, civil_comments"),
        (jigsaw(["a"]), {"columns": {"text": "t", "labels": {}}}, r"must be \{text: column, labels"),
        (jigsaw(["a"]), {"columns": {"text": "t", "labels": {"a": 3}}}, r"data\.columns\.labels\.a is 3"),
    ],
)
def test_wrong_values_are_named_with_their_row(
    tmp_path: Path, table: pd.DataFrame, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidData, match=message):
        read_splits(written(tmp_path, table), DataConfig(**config), 1)


def test_missing_texts_in_parquet_are_named_with_their_row(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="row 2: comment_text is missing"):
        read_splits(written(tmp_path, jigsaw(["a", None]), "c.parquet"), DataConfig(), 1)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "c.csv"),
        (b"comment_text,toxic\na,0\nb,0,0,0\n", "c.csv"),
        (b"comment_text,toxic\na,0,0\nb,0,0\n", "c.csv"),
        (gzip.compress(b"comment_text\n" + bytes(range(32, 127)) * 50)[:-30], "c.csv.gz"),
        (b"comment_text\na\n", "c.csv.gz"),
        (b"PAR1", "c.parquet"),
        (b"comment_text\n\xff\xfe\n", "c.csv"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match="could not be read as"):
        read_splits(tmp_path / name, DataConfig(), 1)
    with pytest.raises(InvalidData, match="no data file at"):
        read_splits(tmp_path / "none.csv", DataConfig(), 1)


def test_no_text_stands_on_two_sides(tmp_path: Path) -> None:
    texts = ["Same text!", "other", "third one", "same   TEXT", "more", "other.", "last"]
    table = jigsaw(texts, row_index=[0, 1, 2, 3, 4, 5, ""], sampling=["natural"] * 7)
    splits = read_splits(written(tmp_path, table), BY_INDEX, 1)
    assert splits.validation.texts == ["Same text!", "other"]
    assert splits.dropped_duplicates == 2
    parts = [{text_key(t) for t in part.texts} for part in (splits.train, splits.tuning, splits.validation)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert sorted(splits.train.texts + splits.tuning.texts) == ["last", "more", "third one"]


def test_sentences_are_parts_of_comments_half_of_them_of_flagged_ones() -> None:
    calm = [f"The map number {i} is here. So it is, in {i} ways! ok" for i in range(20)]
    rude = ["You are a fool, sir.  Nobody likes you at all\nGo away from here, please", "The map number 3 is here."]
    texts, labels = calm + rude, np.array([[0.0, 0.0]] * 20 + [[0.0, 1.0], [np.nan, 1.0]])
    found = sentences(texts, labels, 6, 1)
    assert sorted(found[:3]) == ["Go away from here, please", "Nobody likes you at all", "You are a fool, sir."]
    assert len(found) == 6 and all(any(part in text for text in calm) for part in found[3:])
    assert len(sentences(texts, labels, 1000, 1)) == 3 + 20 + 19  # no whole comment, none twice, none of a word
    assert found == sentences(texts, labels, 6, 1) != sentences(texts, labels, 6, 2)
    assert sentences(texts, labels, 0, 1) == []


def test_duplicates_are_dropped_from_training_in_random_splits_too(tmp_path: Path) -> None:
    table = jigsaw([f"text {i % 60}" for i in range(180)])
    splits = read_splits(written(tmp_path, table), DataConfig(), 1)
    parts = [set(part.texts) for part in (splits.train, splits.tuning, splits.validation)]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert splits.dropped_duplicates == 180 - sum(len(p) for p in (splits.train, splits.tuning, splits.validation)) > 0


def test_contradicting_training_labels_are_counted_and_kept(tmp_path: Path) -> None:
    table = jigsaw(
        ["v", "t", "A  claim", "a claim", "a map", "a map"],
        toxic=[0, 0, 1, 0, 1, 1],
        row_index=[0, 5, 6, 7, 8, 9],
        sampling=["natural", "natural", *["enriched"] * 4],
    )
    table.loc[6] = ["t2", *[0] * 6, 1, "natural"]
    table.loc[7] = ["t3", *[0] * 6, 10, "natural"]
    splits = read_splits(written(tmp_path, table), BY_INDEX, 1)
    assert splits.contradicting == 1
    assert splits.train.texts.count("a map") == 2 and {"A  claim", "a claim"} <= set(splits.train.texts)


def test_tuning_rows_are_natural_ones_and_the_seed_decides(comments_csv: Path) -> None:
    config = DataConfig(
        validation={"column": "row_index", "from": 0, "to": 100},
        tuning={"rows": 50, "where": {"sampling": "natural"}},
    )
    first, again, other = (read_splits(comments_csv, config, seed) for seed in (1, 1, 2))
    assert first.tuning.texts == again.tuning.texts != other.tuning.texts
    table = pd.read_csv(comments_csv)
    natural = set(table.loc[table["sampling"] == "natural", "comment_text"])
    assert len(first.tuning) == 50 and set(first.tuning.texts) <= natural


def test_where_compares_numbers_as_numbers(tmp_path: Path) -> None:
    table = many(40, 20, source=[["", 1][i % 2] for i in range(40)])
    config = DataConfig(tuning={"fraction": 0.5, "where": {"source": 1}})
    splits = read_splits(written(tmp_path, table), config, 1)
    assert len(splits.tuning) in range(7, 11)
    assert all(int(text.split()[1]) % 2 for text in splits.tuning.texts)


def test_random_splits_keep_the_share_of_every_combination_of_labels(tmp_path: Path) -> None:
    table = many(1000, 200)
    table["insult"] = [int(i < 40) for i in range(1000)]
    table["threat"] = [int(i in (0, 999)) for i in range(1000)]
    splits = read_splits(written(tmp_path, table), DataConfig(), 5)
    assert (len(splits.validation), len(splits.tuning), len(splits.train)) == (100, 90, 810)
    for part, toxic, insult in ((splits.validation, 20, 4), (splits.tuning, 18, 4)):
        assert abs(part.labels[:, 0].sum() - toxic) <= 1 and abs(part.labels[:, 4].sum() - insult) <= 1


@pytest.mark.parametrize(
    ("name", "labels", "validation"),
    [("davidson", ("regular", "hate"), [10, 20]), ("davidson_three", ("hate", "offensive", "neither"), [10, 10, 10])],
)
def test_davidson_is_read_by_class(tmp_path: Path, name: str, labels: tuple[str, ...], validation: list[int]) -> None:
    splits = read_splits(written(tmp_path, davidson(300)), DataConfig(format=name), 1)
    assert splits.labels == labels and splits.problem_type == "single_label_classification"
    assert splits.validation.labels.sum(0).tolist() == validation
    number = {text: int(text.split()[1]) % 3 for text in splits.train.texts}
    for text, row in zip(splits.train.texts, splits.train.labels, strict=True):
        wanted = {"davidson": ("hate", "hate", "regular"), "davidson_three": labels}[name][number[text]]
        assert row.tolist() == [float(label == wanted) for label in labels]


def test_civil_comments_have_the_labels_and_identities_whose_columns_are_there(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "comment_text": [f"comment {i}" for i in range(40)],
            "target": [0.5, 0.49] * 20,
            "identity_attack": [0.0, 0.7] * 20,
            "female": ["", 0.5] * 20,
        }
    )
    splits = read_splits(written(tmp_path, table), DataConfig(format="civil_comments"), 1)
    assert splits.labels == ("toxic", "identity_hate")
    assert np.array_equal(splits.train.labels[:, 0], 1 - splits.train.labels[:, 1])
    for part in (splits.train, splits.tuning, splits.validation):
        assert part.identities is not None and list(part.identities) == ["female"]
        assert np.array_equal(part.identities["female"], part.labels[:, 1] == 1)
    higher = read_splits(written(tmp_path, table), DataConfig(format="civil_comments", threshold=0.6), 1)
    assert higher.train.labels[:, 0].sum() == 0


def test_columns_of_the_recipe_replace_those_of_the_format(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"body": [f"b {i}" for i in range(30)], "spam": [0, 1, 0.6] * 10, "kind": ["x", "y", "z"] * 10}
    )
    columns = {"text": "body", "labels": {"spam": "spam", "odd": {"column": "kind", "values": ["y", "z"]}}}
    splits = read_splits(written(tmp_path, table), DataConfig(columns=columns), 1)
    assert splits.labels == ("spam", "odd") and splits.problem_type == "multi_label_classification"
    assert np.array_equal(splits.train.labels[:, 0], splits.train.labels[:, 1])
    single = {"text": "body", "labels": {k: {"column": "kind", "values": [k]} for k in "xyz"}}
    splits = read_splits(written(tmp_path, table), DataConfig(columns=single, problem_type=PROBLEM_TYPES[1]), 1)
    assert splits.train.labels.sum(1).tolist() == [1.0] * len(splits.train)
    with pytest.raises(InvalidData, match="single-label data need at least 2"):
        format_of(DataConfig(columns={"text": "a", "labels": {"b": "b"}}, problem_type=PROBLEM_TYPES[1]))


def test_split_errors_hold_value_limit_and_column(comments_csv: Path) -> None:
    for config, message in (
        (DataConfig(tuning={"rows": 9999}), r"data\.tuning\.rows is 9999, must lie between 1 and"),
        (DataConfig(tuning={"rows": 5, "where": {"where_from": 1}}), "names 'where_from', but the data has"),
        (DataConfig(tuning={"fraction": 1.5}), r"data\.tuning\.fraction is 1\.5, must lie between 0 and 1"),
        (DataConfig(validation={"fraction": "many"}), "data.validation.fraction is 'many'"),
        (DataConfig(validation={"fraction": 1e-6}), "validation set is empty"),
        (DataConfig(validation={"column": "row_index", "from": -5, "to": 0}), "validation set is empty"),
        (DataConfig(validation={"column": "row_index", "from": "a", "to": 0}), "data.validation.from is 'a'"),
        (DataConfig(validation={"column": "n", "from": 0, "to": 1}), r"names 'n', .*set data\.validation to"),
    ):
        with pytest.raises(InvalidData, match=message):
            read_splits(comments_csv, config, 1)


def test_extra_rows_say_what_they_know_of_the_six_labels(tmp_path: Path) -> None:
    main = written(tmp_path, many(60, 20))
    hatemoji = pd.DataFrame({"text": ["H hate", "H rude"], "label_gold": [1, 0]})
    paradetox = pd.DataFrame({"toxic": ["P bad"], "neutral1": ["P good"], "neutral2": [""], "neutral3": ["P fine"]})
    civil = pd.DataFrame({"comment_text": ["C bad", "C good"], "target": [0.9, 0.1], "insult": [0.8, 0.0]})
    tweets = pd.DataFrame({"class": [0, 1, 2], "tweet": ["D hate", "D offence", "D neither"]})
    extra = [
        ("hatemoji", written(tmp_path, hatemoji, "h.csv")),
        ("paradetox", written(tmp_path, paradetox, "p.csv")),
        ("civil_comments", written(tmp_path, civil, "v.csv")),
        ("davidson", written(tmp_path, tweets, "d.csv")),
        ("jigsaw", written(tmp_path, jigsaw(["J"], obscene=[1]), "j.csv")),
    ]
    splits = read_splits(main, DataConfig(), 1, extra)
    assert known(splits, "H") == {"H hate": [1, -1, -1, -1, -1, 1], "H rude": [-1, -1, -1, -1, -1, 0]}
    assert known(splits, "P") == {f"P {t}": [float(t == "bad"), *[-1] * 5] for t in ("bad", "good", "fine")}
    assert known(splits, "C") == {"C bad": [1, -1, -1, -1, 1, -1], "C good": [0, -1, -1, -1, 0, -1]}
    assert known(splits, "D") == {
        "D hate": [1, -1, -1, -1, -1, 1],
        "D offence": [1, -1, -1, -1, -1, -1],
        "D neither": [0] * 6,
    }
    assert known(splits, "J") == {"J": [0, 0, 1, 0, 0, 0]}
    plain = read_splits(main, DataConfig(), 1)
    assert plain.validation.texts == splits.validation.texts and plain.tuning.texts == splits.tuning.texts
    assert len(splits.train) == len(plain.train) + 11


def test_extra_rows_onto_single_labels_are_those_whose_class_is_sure(tmp_path: Path) -> None:
    main = written(tmp_path, davidson(90), "d.csv")
    table = jigsaw(["J none", "J insult", "J hate"], insult=[0, 1, 0], identity_hate=[0, 0, 1], toxic=[0, 1, 1])
    hatemoji = pd.DataFrame({"text": ["H hate", "H regular"], "label_gold": [1, 0]})
    civil = pd.DataFrame({"comment_text": ["C bad", "C good"], "target": [0.9, 0.1]})
    extra = [
        ("jigsaw", written(tmp_path, table, "j.csv")),
        ("hatemoji", written(tmp_path, hatemoji, "h.csv")),
        ("civil_comments", written(tmp_path, civil, "v.csv")),
    ]
    splits = read_splits(main, DataConfig(format="davidson"), 1, extra)
    assert known(splits, "J") == {"J none": [1, 0], "J hate": [0, 1]}
    assert known(splits, "H") == {"H regular": [1, 0], "H hate": [0, 1]}
    assert known(splits, "C") == {"C good": [1, 0]}
    splits = read_splits(main, DataConfig(format="davidson_three"), 1, extra)
    assert known(splits, "J") == {"J none": [0, 0, 1], "J hate": [1, 0, 0]}
    assert known(splits, "H") == {"H hate": [1, 0, 0]}  # not hate: offensive or neither
    # the classes of the same file apart: what is offensive is not known to be hate
    apart = read_splits(main, DataConfig(format="davidson"), 1, [("davidson_three", written(tmp_path, davidson(30)))])
    assert len(apart.train) < len(read_splits(main, DataConfig(format="davidson"), 1).train) + 21


def test_extra_texts_that_are_reported_on_are_dropped(tmp_path: Path) -> None:
    main = written(tmp_path, many(100, 30))
    plain = read_splits(main, DataConfig(), 1)
    held = [f"{text.upper()}!" for text in plain.validation.texts + plain.tuning.texts]
    table = pd.DataFrame({"comment_text": [*held, "news"], "target": [1.0] * (len(held) + 1)})
    splits = read_splits(main, DataConfig(), 1, [("civil_comments", written(tmp_path, table, "v.csv"))])
    assert splits.train.texts == [*plain.train.texts, "news"]
    assert splits.dropped_duplicates == plain.dropped_duplicates + len(held)


def test_extra_data_that_say_nothing_are_refused(tmp_path: Path) -> None:
    main = written(tmp_path, davidson(90), "d.csv")
    pairs = written(tmp_path, pd.DataFrame({"toxic": ["bad"], "neutral1": ["good"]}), "p.csv")
    for name, message in (
        ("paradetox", "in the format paradetox says nothing about the labels regular, hate: leave it out"),
        ("paradetax", "extra data have the format 'paradetax', must be one of jigsaw, .*paradetox"),
    ):
        with pytest.raises(InvalidData, match=message):
            read_splits(main, DataConfig(format="davidson"), 1, [(name, pairs)])
    with pytest.raises(InvalidData, match="lacks the column toxic, neutral1 of paradetox; it has class, tweet"):
        read_splits(main, DataConfig(format="davidson"), 1, [("paradetox", main)])


def test_texts_of_every_known_file_can_be_read(tmp_path: Path) -> None:
    for column in ("comment_text", "tweet", "text", "test_case"):
        table = pd.DataFrame({"id": [1, 2, 3], column: ["NA", "", "12"]})
        assert read_texts(written(tmp_path, table, "t.csv.gz")) == ["NA", "12"]
    assert read_texts(written(tmp_path, jigsaw(["a", None]), "t.parquet")) == ["a"]
    pairs = pd.DataFrame({"toxic": ["bad", "worse"], "neutral1": ["good", "better"], "neutral2": ["", "best"]})
    assert read_texts(written(tmp_path, pairs)) == ["bad", "worse", "good", "better", "best"]
    with pytest.raises(InvalidData, match="has no column of texts: it has spans, needs one of comment_text, tweet"):
        read_texts(written(tmp_path, pd.DataFrame({"spans": ["a"]})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {pretrained: x, poolin: mean}", "encoder has the unknown key poolin; it may hold pretrained"),
        ("encoder: {}", "encoder needs `pretrained` or `config`"),
        ("encoder: {pretrained: x}\ntrain: {batch_size: 1.5}", r"train\.batch_size is 1\.5, must be a whole number"),
        ("encoder: {pretrained: x}\ntrain: {epochs: 0}", r"train\.epochs is 0, must be above 0"),
        ("encoder: {pretrained: x}\ntrain: {learning_rate: fast}", "must be a number"),
        ("encoder: {pretrained: x, pooling: max}", "pooling is 'max', must be one of mean, cls, max_mean"),
        ("encoder: {config: {hidden_size: 8}}", "lacks `model_type`"),
        ("encoder: {pretrained: x}\ndata: {validation: {column: a}}", "needs column, from, to; or fraction"),
        ("model: {}", "the recipe has the unknown key model"),
        ("- a", "must hold the sections encoder, linear, ngrams, data, train"),
        ("a: [", "is not YAML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_shipped_recipes_can_be_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert {"minilm", "linear", "baseline-logreg", "baseline-svm-hate"} <= set(shipped_recipes())
    for recipe in shipped_recipes():
        format_of(read_recipe(recipe).data)
    with pytest.raises(InvalidConfig, match=r"no recipe at .*none\.yaml: give a YAML file or one of .*minilm"):
        read_recipe(tmp_path / "none.yaml")


def test_null_is_a_value_where_there_may_be_none(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("linear: {class_weight: null}")
    recipe = read_recipe(tmp_path / "r.yaml")
    assert recipe.linear is not None and recipe.linear.class_weight is None


def test_a_baseline_for_toxicity_reads_hate_speech_by_overrides() -> None:
    overrides = ["data.format=davidson", "data.validation={fraction: 0.1}", "data.tuning={fraction: 0.1}"]
    assert read_recipe("baseline-logreg", overrides) == read_recipe("baseline-logreg-hate")
