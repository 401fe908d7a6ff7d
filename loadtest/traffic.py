"""Traffic as in life, from a corpus: requests of several sizes, repeats, other languages, and bursts of an attack.

A mix changes what the comments are, not when they come: see :mod:`loadtest.shapes` for that.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from loadtest import corpus

LANGUAGES = {
    "es": "que de no la es un por qué eres muy idiota gracias pero todo esto nunca nadie mejor",
    "de": "das ist nicht ein und du bist so dumm aber danke sehr schön warum immer niemand etwas",
    "fr": "que de ne pas la est un pourquoi tu es merci beaucoup toujours rien vraiment nul",
    "pt": "que de não uma você é muito burro obrigado mas tudo isso nunca ninguém melhor",
    "tr": "bu bir ve çok sen değil neden güzel teşekkürler aptal hiç kimse her şey daha iyi",
    "ru": "это не что ты такой дурак но спасибо почему всегда никто ничего очень хорошо",
    "ar": "هذا ليس من أنت في على لماذا شكرا جدا غبي دائما لا أحد شيء",
    "hi": "यह नहीं है और तुम क्यों बहुत अच्छा धन्यवाद मूर्ख हमेशा कोई कुछ",
    "ja": "これ は とても いい です なぜ あなた バカ ありがとう いつも だれも 何か",
    "zh": "这 个 不 是 很 好 你 为什么 谢谢 笨蛋 总是 没有 人 东西",
}
SIZES = {1: 0.7, 4: 0.1, 16: 0.15, 64: 0.05}
"""Comments in a request of mixed traffic, and how often."""
TRAFFIC = ("single", "batch", "mixed")
BURST = (20, 60)
"""Comments of one attack, one right after the other."""
INSULTS = ("you are an idiot", "go away you fool", "nobody wants you here", "shut up liar", "delete this trash")
DISGUISES = str.maketrans({"i": "1", "o": "0", "a": "@", "e": "3"})
MEMORY = 500


@dataclass(frozen=True)
class Mix:
    """Shares of the comments, in [0, 1]; what is left comes from the corpus as it is.

    :param repeats: one of the last ``MEMORY`` comments again. :param foreign: in another language.
    :param attacks: bursts of near copies of one insult, disguised now and then.
    """

    repeats: float = 0.0
    foreign: float = 0.0
    attacks: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            if not 0 <= getattr(self, f.name) <= 1:
                raise ValueError(f"{f.name} is {getattr(self, f.name)}, must be a share in [0, 1]")
        if (total := self.repeats + self.foreign + self.attacks) > 1:
            raise ValueError(f"the shares of a mix come to {total:g}, must be at most 1")


MIXES = {"plain": Mix(), "life": Mix(repeats=0.1, foreign=0.15, attacks=0.05)}


def parse_mix(text: str) -> Mix:
    """``plain``, ``life``, or shares such as ``foreign=0.3,attacks=0.1``.

    :raises ValueError: for anything else.
    """
    if text in MIXES:
        return MIXES[text]
    names, shares = [f.name for f in fields(Mix)], {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            if name not in names:
                raise ValueError
            shares[name] = float(value)
        except ValueError:
            raise ValueError(
                f"the mix is {text!r}, must be one of {', '.join(MIXES)}, or shares such as foreign=0.3,attacks=0.1"
            ) from None
    return Mix(**shares)


def comments(texts: Sequence[str], mix: Mix, seed: int | str) -> Iterator[str]:
    """Comments without end; the same for the same seed. The corpus is gone through in order, from a random place."""
    rng = random.Random(f"traffic {seed}")
    at = rng.randrange(len(texts))
    recent: list[str] = []
    # a burst has many comments, so that one begins more rarely than its comments come
    length = sum(BURST) / 2
    begin = mix.attacks / (length * (1 - mix.attacks) + mix.attacks) if mix.attacks < 1 else 1.0
    others = max(1e-9, 1 - mix.attacks)
    while True:
        if rng.random() < begin:
            for text in _attack(rng):
                yield text
            continue
        kind = rng.random()
        if recent and kind < mix.repeats / others:
            text = rng.choice(recent)
        elif kind < (mix.repeats + mix.foreign) / others:
            text = _foreign(rng)
        else:
            text, at = texts[at], (at + 1) % len(texts)
        recent.append(text)
        del recent[:-MEMORY]
        yield text


def sizes(traffic: str, batch: int, seed: int | str, most: int = 64) -> Iterator[int]:
    """Comments in each request: 1 (``single``), ``batch``, or drawn from ``SIZES`` (``mixed``), at most ``most``.

    :raises ValueError: for another kind of traffic.
    """
    if traffic not in TRAFFIC:
        raise ValueError(f"the traffic is {traffic!r}, must be one of {', '.join(TRAFFIC)}")
    rng = random.Random(f"sizes {seed}")
    while True:
        if traffic == "mixed":
            yield min(most, rng.choices(list(SIZES), list(SIZES.values()))[0])
        else:
            yield 1 if traffic == "single" else batch


def requests(texts: Sequence[str], arguments: argparse.Namespace, count: int, most: int) -> list[list[str]]:
    """The comments of so many requests, as the options of :func:`add_options` say.

    :param most: comments that a request may hold.
    :raises ValueError: when ``--batch`` is more.
    """
    if arguments.traffic == "batch" and arguments.batch > most:
        raise ValueError(f"--batch is {arguments.batch}, the model takes at most {most}")
    stream = comments(texts, parse_mix(arguments.mix), arguments.seed)
    counts = sizes(arguments.traffic, arguments.batch, arguments.seed, most)
    return [list(itertools.islice(stream, size)) for size in itertools.islice(counts, count)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to send, for a command."""
    parser.add_argument("--traffic", choices=TRAFFIC, default="batch", help="one comment a request, --batch, or both")
    parser.add_argument("--batch", type=whole, default=1, help="comments in each request")
    parser.add_argument("--corpus", type=Path, help="text file, a comment a line, or CSV; by default made-up comments")
    parser.add_argument(
        "--mix",
        type=_mix,
        default="plain",
        help=f"{' or '.join(MIXES)}, or shares of repeats, foreign, attacks such as foreign=0.3,attacks=0.1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is made up, and of the moments of sending")


def read_texts(arguments: argparse.Namespace) -> list[str]:
    """:raises InvalidCorpus: see :func:`loadtest.corpus.read`."""
    return corpus.read(arguments.corpus) if arguments.corpus else corpus.generate(seed=arguments.seed)


def described(arguments: argparse.Namespace) -> dict[str, object]:
    """What was sent, for a result file."""
    return {
        "traffic": arguments.traffic,
        "batch": arguments.batch,
        "corpus": str(arguments.corpus or f"generated, seed {arguments.seed}"),
        "mix": arguments.mix,
    }


def whole(text: str) -> int:
    """For argparse: a number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _mix(text: str) -> str:
    try:
        parse_mix(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _foreign(rng: random.Random) -> str:
    language = rng.choice(list(LANGUAGES))
    words = rng.choices(LANGUAGES[language].split(), k=min(300, max(2, round(rng.lognormvariate(2.8, 0.8)))))
    return ("" if language in ("ja", "zh") else " ").join(words)


def _attack(rng: random.Random) -> Iterator[str]:
    insult = rng.choice(INSULTS)
    for _ in range(rng.randint(*BURST)):
        text = insult.translate(DISGUISES) if rng.random() < 0.3 else insult
        if rng.random() < 0.3:
            text = text.upper()
        yield text + "!" * rng.randint(0, 3)
