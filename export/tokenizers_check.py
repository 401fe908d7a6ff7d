"""``python -m export.tokenizers_check``: do faster libraries give the token ids of ``tokenizers``? How fast are they?

The ids of ``tokenizers`` are what models are trained on, so it is the reference. The other libraries are tried where
they are installed (none of them is needed): ``pip install nanotoken morpheme kitoken budtiktok tokie flash-tokenizer``
into an environment of your own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"  # the thread pool of all libraries in Rust

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from export.templates.fast_tokenizer import CACHE_ENTRIES
from export.tokenizer_fuzz import Fuzzer
from train.artifact import git_commit, machine, write_json
from train.data import InvalidData, read_texts

Ids = Sequence[Sequence[int]]
Encode = Callable[[list[str]], Ids]

BATCH = 500
"""Texts that are compared at once."""

GIVE_UP = 5_000
"""A library with so many differences is compared no further."""

EXAMPLES = 3
"""Differing texts that are reported of each class, shortened as far as they still differ: a report quotes nobody."""

SIZES = (1, 16, 64)
"""Comments in a call, when speed is measured."""

ROUNDS = 5
PART = 640
"""Comments of a library's turn in a round. No comment is measured twice, so that a cache can know words alone."""


@dataclass
class Library:
    """A tokenizer library with the tokenizer under test loaded into it.

    :ivar encode: texts to rows of ids, special tokens included.
    :ivar raw: the same as fast as the library can: what serving would call, ids in whatever form it gives.
    :ivar differences: texts with other ids than the reference's, by class.
    :ivar examples: of each class, the first differing texts and the ids where they begin to differ.
    """

    name: str
    encode: Encode
    raw: Callable[[list[str]], object]
    compared: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.differences.values())

    def compare(self, names: Sequence[str], texts: list[str], expected: Ids, reference: Tokenizer) -> None:
        if self.total >= GIVE_UP:
            return
        self.compared += len(texts)
        for name, text, found, wanted in zip(names, texts, self.try_all(texts), expected, strict=True):
            if differ(found, wanted):
                self.differences[name] += 1
                examples = self.examples.setdefault(name, [])
                if len(examples) < EXAMPLES:
                    examples.append(self.example(text, reference))

    def example(self, text: str, reference: Tokenizer) -> dict[str, Any]:
        """The least of ``text`` that still differs, and from which token on."""
        least = shorten(text, lambda t: differ(*self.both(t, reference)))
        return {"text": ascii(least[:120]), **difference(*self.both(least, reference))}

    def both(self, text: str, reference: Tokenizer) -> tuple[Sequence[int] | str, Sequence[int]]:
        return next(iter(self.try_all([text]))), reference.encode(text).ids

    def try_all(self, texts: list[str]) -> Iterable[Sequence[int] | str]:
        """The ids of each text, or the error that it gives. One that fails does not spoil the others."""
        try:
            return self.encode(texts)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            return [f"{type(error).__name__}: {error}"[:200]] if len(texts) == 1 else self.one_by_one(texts)

    def one_by_one(self, texts: list[str]) -> Iterator[Sequence[int] | str]:
        for text in texts:
            yield from self.try_all([text])


def differ(found: Sequence[int] | str, wanted: Sequence[int]) -> bool:
    return isinstance(found, str) or list(found) != list(wanted)


def shorten(text: str, holds: Callable[[str], bool]) -> str:
    """``text`` less all pieces, from halves down to single characters, without which ``holds`` still does."""
    step = (len(text) + 1) // 2
    while step:
        at = 0
        while at < len(text):
            shorter = text[:at] + text[at + step :]
            if holds(shorter):
                text = shorter
            else:
                at += step
        step //= 2
    return text


def difference(found: Sequence[int] | str, wanted: Sequence[int]) -> dict[str, Any]:
    if isinstance(found, str):
        return {"error": found}
    pairs = enumerate(zip(found, wanted, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), min(len(found), len(wanted)))
    return {"position": at, "found": list(found[at : at + 4]), "expected": list(wanted[at : at + 4])}


def libraries(definition: str, reference: Tokenizer) -> tuple[list[Library], dict[str, str]]:
    """Those that are installed and read the tokenizer; and of the others, why they are not compared.

    :param definition: a ``tokenizer.json`` without truncation and padding.
    """
    found, absent = [], {}
    for name, build in BUILDERS.items():
        try:
            encode, raw = build(definition, reference)
            encode(["a"])
        except ModuleNotFoundError:
            absent[name] = "not installed"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            absent[name] = f"does not load it: {error}"[:200]
        else:
            found.append(Library(name, encode, raw))
    return found, absent


def nanotoken(definition: str, _: Tokenizer) -> tuple[Encode, Callable[[list[str]], object]]:
    module: Any = importlib.import_module("nanotoken")
    module.set_cache_entries(CACHE_ENTRIES)
    backend = module.Tokenizer.from_json(definition).backend

    def encode(texts: list[str]) -> Ids:
        rows: Ids = backend.encode_batch_list(texts, parallel=False)
        return rows

    return encode, lambda texts: backend.encode_batch(texts, parallel=False)


def of_encodings(package: str) -> Callable[[str, Tokenizer], tuple[Encode, Callable[[list[str]], object]]]:
    """For the libraries made after ``tokenizers``: objects with ``ids``, one for each text."""

    def build(definition: str, _: Tokenizer) -> tuple[Encode, Callable[[list[str]], object]]:
        module: Any = importlib.import_module(package)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(definition, encoding="utf-8")
            load = module.Tokenizer.from_json if package == "tokie" else module.Tokenizer.from_file
            tokenizer = load(str(path))

        def encode(texts: list[str]) -> Ids:
            return [encoding.ids for encoding in tokenizer.encode_batch(texts, True)]

        return encode, encode

    return build


def kitoken(definition: str, reference: Tokenizer) -> tuple[Encode, Callable[[list[str]], object]]:
    """It adds no [CLS] and [SEP]: they are added here."""
    tokenizer: Any = importlib.import_module("kitoken").Kitoken.from_tokenizers(definition.encode())
    example = reference.encode("a")
    start = example.special_tokens_mask.index(0)
    stop = len(example.ids) - example.special_tokens_mask[::-1].index(0)
    before, behind = example.ids[:start], example.ids[stop:]

    def encode(texts: list[str]) -> Ids:
        return [[*before, *row, *behind] for row in tokenizer.encode_all(texts, True)]

    return encode, encode


def flash_tokenizer(definition: str, _: Tokenizer) -> tuple[Encode, Callable[[list[str]], object]]:
    """It knows only vocabularies, of BERT."""
    core: Any = importlib.import_module("flash_tokenizer._core")
    vocabulary = json.loads(definition)["model"]["vocab"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
        tokenizer = core.FlashBertTokenizer(str(path), True, 1_000_000, True)

    def encode(texts: list[str]) -> Ids:
        return [tokenizer.encode(text, "longest", 1_000_000) for text in texts]

    return encode, encode


BUILDERS: dict[str, Callable[[str, Tokenizer], tuple[Encode, Callable[[list[str]], object]]]] = {
    "nanotoken": nanotoken,
    "morpheme": of_encodings("morpheme"),
    "kitoken": kitoken,
    "budtiktok": of_encodings("budtiktok"),
    "tokie": of_encodings("tokie"),
    "flash-tokenizer": flash_tokenizer,
}


def compare(
    reference: Tokenizer, tried: Sequence[Library], comments: dict[str, list[str]], fuzzer: Fuzzer, strings: int
) -> Counter[str]:
    """All comments, then fuzzed texts until there are ``strings``. The texts compared, by class."""
    real = ((name, text) for name, texts in comments.items() for text in texts)
    rest = max(strings - sum(map(len, comments.values())), 0)
    counts: Counter[str] = Counter()
    with tqdm(total=strings, desc="comparing", unit=" texts", mininterval=5) as bar:
        for stream in (real, fuzzer.stream(rest)):
            while batch := list(islice(stream, BATCH)):
                names, texts = [name for name, _ in batch], [text for _, text in batch]
                expected = [encoding.ids for encoding in reference.encode_batch_fast(texts)]
                for library in tried:
                    library.compare(names, texts, expected, reference)
                counts.update(names)
                bar.update(len(batch))
    return counts


def ways(definition: str, max_tokens: int) -> dict[str, Callable[[list[str]], object]]:
    """The ways to call ``tokenizers`` itself."""
    whole, cut = Tokenizer.from_str(definition), Tokenizer.from_str(definition)
    cut.enable_truncation(max_tokens)
    return {
        "tokenizers: encode in a loop": lambda texts: [whole.encode(text).ids for text in texts],
        "tokenizers: encode_batch": lambda texts: [encoding.ids for encoding in whole.encode_batch(texts)],
        "tokenizers: encode_batch_fast": lambda texts: [encoding.ids for encoding in whole.encode_batch_fast(texts)],
        "tokenizers: encode_batch_fast, ids not read": whole.encode_batch_fast,
        f"tokenizers: encode_batch_fast, truncation at {max_tokens}": lambda texts: [
            encoding.ids for encoding in cut.encode_batch_fast(texts)
        ],
    }


def measure(
    calls: dict[str, Callable[[list[str]], object]], comments: Sequence[str], sizes: Sequence[int] = SIZES
) -> dict[str, dict[str, float]]:
    """CPU time in microseconds a comment, of all threads, by call and batch size: the median of interleaved rounds."""
    needed = (ROUNDS + 1) * len(sizes) * PART
    if len(comments) < needed:
        raise InvalidData(
            f"speed is measured on {needed} different comments, the corpus has {len(comments)}: give more files"
        )
    parts = [list(comments[i : i + PART]) for i in range(0, needed, PART)]
    warm_up, parts = parts[: len(sizes)], parts[len(sizes) :]
    for part in warm_up:
        for call in calls.values():
            call(part)
    taken: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in calls}
    for number, part in enumerate(tqdm(parts, desc="speed", unit=" parts")):
        size = sizes[number % len(sizes)]
        batches = [part[i : i + size] for i in range(0, len(part), size)]
        for name, call in calls.items():
            started = time.process_time()
            for batch in batches:
                call(batch)
            taken[name][size].append((time.process_time() - started) / len(part) * 1e6)
    return {n: {str(s): round(float(np.median(t)), 2) for s, t in by_size.items()} for n, by_size in taken.items()}


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare, measure, and say both.

    :raises InvalidData: for a corpus that cannot be read, or is too small to measure speed on.
    """
    commit = git_commit()
    content = json.loads(arguments.tokenizer.read_text(encoding="utf-8"))
    content["truncation"] = content["padding"] = None
    definition = json.dumps(content)
    reference = Tokenizer.from_str(definition)
    comments = {f"real: {file.parent.name}/{file.name}": read_texts(file) for file in arguments.corpus}
    everything = [text for texts in comments.values() for text in texts]
    fuzzer = Fuzzer(everything, sorted(reference.get_vocab()), arguments.seed)
    tried, absent = libraries(definition, reference)
    if arguments.libraries:
        tried = [library for library in tried if library.name in arguments.libraries]

    calls = ways(definition, arguments.max_tokens) | {library.name: library.raw for library in tried}
    drawn = fuzzer.rng.sample(everything, len(everything))
    speed = measure(calls, drawn)
    counts = compare(reference, tried, comments, fuzzer, arguments.strings)

    # last: from here on, tokenizers may use all cores
    del os.environ["RAYON_NUM_THREADS"]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    name = "tokenizers: encode_batch_fast"
    parallel = measure({f"{name}, parallel": ways(definition, arguments.max_tokens)[name]}, drawn)
    return {
        "tokenizer": content["model"]["type"],
        "tokenizer_file": arguments.name or arguments.tokenizer.parent.name,
        "vocabulary": reference.get_vocab_size(),
        "seed": arguments.seed,
        "strings": sum(counts.values()),
        "classes": dict(counts),
        "versions": versions(["tokenizers", *(library.name for library in tried)]),
        "libraries": {
            library.name: {
                "compared": library.compared,
                "differences": library.total,
                "by_class": dict(library.differences),
                "examples": library.examples,
            }
            for library in tried
        },
        "absent": absent,
        "cpu_us_per_comment": speed | parallel,
        "mean_characters": round(float(np.mean([len(text) for text in everything])), 1),
        "machine": machine(),
        "git_commit": commit,
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def summary(report: dict[str, Any]) -> str:
    lines = [f"{report['strings']:,} texts, {report['vocabulary']:,} tokens, reference tokenizers"]
    for name, found in report["libraries"].items():
        stopped = "" if found["compared"] == report["strings"] else f" of {found['compared']:,}, then given up"
        lines.append(f"{name:18}{found['differences']:>8,} differ{stopped}")
        for kind, examples in found["examples"].items():
            lines.append(f"  {kind}: {found['by_class'][kind]:,}, such as {json.dumps(examples[0])}")
    for name, reason in report["absent"].items():
        lines.append(f"{name:18}{reason}")
    lines += ["", f"{'CPU us a comment, comments a call':58}" + "".join(f"{size:>9}" for size in SIZES)]
    for name, times in report["cpu_us_per_comment"].items():
        lines.append(f"{name:58}" + "".join(f"{times[str(size)]:>9.1f}" for size in SIZES))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.tokenizers_check",
        description="Compare the token ids of faster libraries with those of tokenizers, and their speed.",
    )
    p.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    p.add_argument("--name", help="what the report calls it (default: the name of its folder)")
    p.add_argument("--corpus", type=Path, nargs="+", required=True, help="files of comments: CSV or Parquet")
    p.add_argument("--strings", type=int, default=1_000_000, help="texts to compare: the comments, then fuzzed ones")
    p.add_argument(
        "--libraries", nargs="+", choices=list(BUILDERS), help="only these (default: all that are installed)"
    )
    p.add_argument("--max-tokens", type=int, default=128, help="for the measurement with truncation")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--report", type=Path, help="write all of it to this JSON file")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        report = check(arguments)
    except (InvalidData, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    print(summary(report))
    if arguments.report:
        write_json(arguments.report, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
