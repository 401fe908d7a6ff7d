"""The golden comments: what every version carries with it, and checks itself on where it is served.

Integer kernels differ between processors, files get damaged, and a tokenizer of another model fits the graph as well as
the right one. None of that gives an error, only other scores. So the exporter stores what these comments must give, and
a version that gives something else does not become ready.
"""

from __future__ import annotations

TEXTS: tuple[str, ...] = (
    "Thanks for fixing the table, it reads much better now.",
    "You are an idiot and everyone here knows it.",
    "ok",
    "I will find you and break your legs.",
    "What a load of crap, did you even read the source?",
    "Nobody wants your kind in this country, get out.",
    "Could somebody explain why the second paragraph was removed?",
    "fuck off",
    "You 1d10t, y o u  a r e so stuuuupid!!!",
    "Café, naïve, Zürich, Ångström, 東京, Москва — and a smile 🙂",
    "https://example.org/page?id=42&lang=en #moderation @someone",
    'He said she was "not very bright"; I\'d call that rude, not hateful.',
    "SHUT UP SHUT UP SHUT UP",
    "Merged per the discussion on the talk page. " * 12,
    "ha\tha\nha",
    "",
)
"""Written for this purpose; the rude ones are here to be recognised."""

TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.02}
"""How far a score may be from the stored one. Rounding differs between processors, and in INT8 a state that is rounded
to the next step moves a score by thousandths; an overflow in a kernel, or a damaged weight, moves it by tenths."""
