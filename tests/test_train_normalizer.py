"""The text normalizer: what it undoes, what it leaves alone, where things stood, and that nothing holds it up."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.normalizer import EVASIONS, FEW, RANKS, TOGETHER, normalize, normalize_text, normalize_texts

FILE = ROOT / "train/normalizer.py"


@pytest.mark.parametrize(
    ("text", "plain", "evasions"),
    [
        # leet
        ("you 1d10t", "you idiot", "leet"),
        ("sh1t a$$ @sshole 5tupid h4te", "shit ass asshole stupid hate", "leet"),
        ("what an !d!ot!!", "what an idiot!!", "leet"),
        ("y0u 4r3 $7up!d", "you are stupid", "leet"),
        ("Y0U L0S3R", "YOU LOSER", "leet"),
        ("k!ll y0urs3lf", "kill yourself", "leet"),
        ("the obstr3p3r0us one", "the obstreperous one", "leet"),
        # spacing
        ("i d i o t", "idiot", "spacing"),
        ("you s-t-u-p-i-d s_h_i_t, f.u.c.k off", "you stupid shit, fuck off", "spacing"),
        ("such a s t u p i d person", "such a stupid person", "spacing"),
        ("t h i s i s s t u p i d", "this is stupid", "spacing"),
        ("y o u   a r e   a n   i d i o t", "you   are   an   idiot", "spacing"),
        ("s * h * i * t", "shit", "spacing"),
        ("1 d 1 0 t", "idiot", "leet spacing"),
        ("f.u.c.k.y.o.u", "fuck you", "spacing"),
        ("F.U.C.K. the W.H.O.", "FUCK. the WHO.", "spacing"),  # abbreviations that are words are joined too
        ("d o n't", "don't", "spacing"),
        # stretch
        ("fuuuuuck", "fuck", "stretch"),
        ("sooooo goooood", "so good", "stretch"),
        ("helllllo bitchhhh", "hello bitch", "stretch"),
        ("ASSSSSHOLE", "ASSHOLE", "stretch"),
        # look-alikes
        ("ѕtuріd іdiоt", "stupid idiot", "homoglyph"),
        ("you ѕһіт", "you shit", "homoglyph"),
        ("such a lοsεr", "such a loser", "homoglyph"),
        ("ꜰᴜᴄᴋ", "ꜰᴜᴄᴋ", ""),  # a text without one Latin letter is taken for another script
        ("you ꜰᴜᴄᴋer", "you fucker", "homoglyph"),
        ("ИEVER", "NEVER", "homoglyph"),
        # compatibility
        ("ｉｄｉｏｔ", "idiot", "compatibility"),
        ("𝖎𝖉𝖎𝖔𝖙 𝓲𝓭𝓲𝓸𝓽 ⓘⓓⓘⓞⓣ ⁱᵈⁱᵒᵗ", "idiot idiot idiot idiot", "compatibility"),
        ("🅸🅳🅸🅾🆃", "IDIOT", "compatibility"),
        # invisible
        ("i\u200bd\u00adi\u2060o\ufefft", "idiot", "zero_width"),
        ("i\u200dd\u200ci\u202eo\ufe0ft", "idiot", "zero_width"),
        ("i̶d̶i̶o̶t̶", "idiot", "zero_width"),
        ("i\u0317\u0300\u0323\u0351d\u0315\u0300\u0327\u0321iot", "idiot", "zero_width"),
        # entities
        ("&#105;diot &amp;amp; &lt;b&gt; caf&eacute;", "idiot & <b> café", ""),
        # several at once
        ("ｆ.ｕ.ｃ.ｋ", "fuck", "compatibility spacing"),
        ("1d1ооооt", "idiot", "homoglyph leet stretch"),
    ],
)
def test_what_is_disguised_is_read(text: str, plain: str, evasions: str) -> None:
    result = normalize(text)
    assert result.text == plain
    assert result.evasions == tuple(evasions.split())
    assert set(result.evasions) <= set(EVASIONS)
    assert normalize_text(text) == plain


UNTOUCHED = [
    "You are right, thanks! I'm a bit late; see you on 3/4/2005 at 7pm.",
    "the 1990s, the 4th, 2nd, 3rd, 21st and 10th; 5kg, 30s, 100px, 3am, 7ft, 80mm, v2, 1.5GHz",
    "an mp3 of h2o, co2 and B2B, GPT4, A380, F16, B52, H5N1, M4A1, L3d, PS3, 4chan, MI5, utf8, sha1, win32, x86_64",
    "http://example.com/a1b2/d1e?x=h4te mail me: d4ve@example.com www.s1te.org www.xxx.com #t4g @like @user99",
    "192.168.10.1 and 2001:db8:0:1, $5, US$50, $100k, part5, page1, section 3.1.4",
    "U.S.A. and a.k.a. J. R. R. Tolkien, e.g. A, B, C, D; a b c d; x y z; A B C D E F",
    "the E.U. and N.A.T.O. in 3 - 4 days: a - b - c",
    "a good book, still all too loose, committee, Mississippi, hmm, XXX, www, Louis XIII, zzz, KKK",
    "m² is not m2, ½ + ¼, Tritox™, don´t, 41.0ºN",
    "naïve café, Đà Nẵng, Łódź, Bjørn, Straße, Việt Nam, Ångström",
    "Привет, как дела? вот тот кот, она сор",
    "Καλημέρα κόσμε, τι κάνεις; το ναι",
    "ABC and TNFα, 5 μm, β-carotene, Ωm",
    "السلام عليكم می‌خواهم नमस्ते क्‍ष สวัสดีครับ ที่นี่ שָׁלוֹם 你好 こんにちは 안녕하세요",
    "👩‍💻 and 👨‍👩‍👧 🇩🇪",
    "{{cite web|url=a|title=b}} | talk | [[User:Name|name]] '''bold'''",
    "Wow!!! Really??? No... ----- ====",
    "!important and !vote, so much!thanks",
    "",
    " \t\n ",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_plain_stays(text: str) -> None:
    assert normalize_text(text) == text
    result = normalize(text)
    assert result.text == text and result.evasions == ()
    assert result.offsets == tuple(range(len(text)))


def test_a_word_of_lookalikes_is_read_only_among_latin_words() -> None:
    assert normalize_text("he said тоо much") == "he said too much"
    assert normalize_text("нет, тоо") == "нет, тоо"
    assert normalize_text("это слово тоо по-русски, the word") == "это слово тоо по-русски, the word"


def test_spans_lead_back_to_the_original() -> None:
    text = "&lt; you ｆ\u200bｕｃｋ, i d i o t and sooooo 1d10t ﬁn \U0001f595\ufe0f"
    result = normalize(text)
    assert result.text == "< you fuck, idiot and so idiot fin \U0001f595"

    def original(word: str, start: int = 0) -> str:
        begin = result.text.index(word, start)
        first, last = result.span(begin, begin + len(word))
        return text[first:last]

    assert original("<") == "&lt;"
    assert original("fuck") == "ｆ\u200bｕｃｋ"
    assert original("idiot") == "i d i o t"
    assert original("so") == "sooooo"
    assert original("idiot", result.text.index("so")) == "1d10t"
    assert original("f", result.text.index("fin")) == "ﬁ" == original("fi", result.text.index("fin"))
    assert result.span(0, len(result.text)) == (0, len(text))
    assert result.span(3, 3) == (6, 6)
    assert result.span(len(result.text), len(result.text)) == (len(text), len(text))
    with pytest.raises(ValueError, match=r"the span \[3, 99\) does not lie in the normalized text"):
        result.span(3, 99)


ODD_CHARACTERS = st.sampled_from(
    "aeiotsADF 10345$@!.-_*&;#|\n\u200b\u200d\u0301\u0336аеоαоｆ𝖋👩\ud800\u1100\u1161\u00adﬁ"
)
TEXTS = st.one_of(
    st.text(st.one_of(ODD_CHARACTERS, st.characters()), max_size=60),
    st.lists(st.sampled_from(["1d10t", "i d", "f.u", "sooo", "&am", "p;", "#105;", "ѕo", "h4te", " ", "a", "@"])).map(
        "".join
    ),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_any_text_is_taken_and_offsets_hold(text: str) -> None:
    result = normalize(text)
    assert result.text == normalize_text(text)
    assert len(result.offsets) == len(result.text)
    assert list(result.offsets) == sorted(result.offsets)
    assert all(0 <= offset < len(text) for offset in result.offsets)
    result.text.encode()  # no lone surrogate is left
    for begin in range(len(result.text)):
        first, last = result.span(begin, begin + 1)
        assert first < last
        if result.text[begin] == text[first]:
            continue  # came through as it was
    again = normalize_text(result.text)
    assert normalize_text(again) in (again, normalize_text(normalize_text(again)))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, max_size=3 * FEW))
def test_texts_together_become_what_each_becomes_alone(texts: list[str]) -> None:
    assert normalize_texts(texts) == [normalize_text(text) for text in texts]


def test_neighbours_are_not_read_together() -> None:
    for texts in (["i", "d", "i", "o", "t"], ["so", "oo", "o", "ok"], ["h", "4", "te"], ["&am", "p;", "&", "lt;"]):
        assert normalize_texts(texts) == texts
    texts = [f"number {i}" for i in range(3 * TOGETHER)]
    texts[TOGETHER - 1] = texts[TOGETHER] = "1d10t"
    assert [i for i, text in enumerate(normalize_texts(texts)) if text == "idiot"] == [TOGETHER - 1, TOGETHER]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([*list(RANKS)[::50], "1d10t", "f.u.c.k", "s h i t", "ѕtupid", "soooo", "4th", "U.S.A."]))
)
def test_it_is_idempotent_on_what_people_write(words: list[str]) -> None:
    once = normalize_text(" ".join(words))
    assert normalize_text(once) == once


@given(st.lists(st.sampled_from(sorted(RANKS))))
def test_common_words_stay(words: list[str]) -> None:
    text = " ".join(words)
    assert normalize_text(text) == text


N = 200_000
FLOODS = {
    "letters": "a" * N,
    "stretched": "fuuuuck " * (N // 8),
    "spaced": "i d i o t " * (N // 10),
    "dotted": "a." * (N // 2),
    "spaces": " " * N + "a",
    "leet": "h4t3" * (N // 4),
    "ambiguous": "1l1l1l1l1lh " * (N // 12),
    "ats": "@a" * (N // 2),
    "entities": "&amp;" * (N // 5) + "&" * N,
    "nested": "&" + "amp;" * (N // 4),
    "marks": "a" + "\u0315\u0300\u0327" * (N // 3),
    "invisible": "\u200b" * N,
    "lookalikes": "aа " * (N // 3),
    "ligatures": "\ufdfa" * N,
    "surrogates": "\ud800" * N,
    "bars": "a|" * (N // 2),
}


@pytest.mark.parametrize("text", FLOODS.values(), ids=FLOODS.keys())
def test_no_flood_takes_more_than_its_length(text: str) -> None:
    started = time.process_time()
    assert len(normalize_text(text)) <= 4 * len(text)
    assert time.process_time() - started < 5  # about half a second; quadratic time would be hours


def test_plain_text_costs_microseconds() -> None:
    text = "I don't think that this section of the article needs another source; see the talk page, please. " * 3
    best = min(_seconds(text) for _ in range(5))
    assert best < 100e-6, f"{best * 1e6:.0f} us"  # 8 us measured


def _seconds(text: str) -> float:
    started = time.perf_counter()
    for _ in range(200):
        normalize_text(text)
    return (time.perf_counter() - started) / 200


def test_the_file_stands_alone(tmp_path: Path) -> None:
    """It is copied beside a served tokenizer, where neither ``train`` nor another package than numpy is."""
    modules = set()
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"), feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).split(".")[0])
    assert modules <= sys.stdlib_module_names | {"numpy"}
    copy = tmp_path / "normalizer.py"
    copy.write_bytes(FILE.read_bytes())
    spec = importlib.util.spec_from_file_location("some_name", copy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # without an entry in sys.modules
    assert module.normalize_text("1d10t") == "idiot"
    code = f"import runpy; print(runpy.run_path({str(copy)!r})['normalize']('h4te').text)"
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "hate\n"


def test_accents_are_composed() -> None:
    text = unicodedata.normalize("NFD", "café Việt")
    assert normalize_text(text) == "café Việt"
    assert normalize(text).evasions == ()
