"""More training comments against identity bias: counterfactuals of real ones, and written patterns.

A classifier learns from comments that identities are mostly named where they are attacked, and takes the name for
the attack. Two remedies, each of which gives rows for the training split alone:

- :func:`counterfactuals` repeats comments with another identity in the place of the one they name, under the same
  labels. Source: Garg et al., "Counterfactual fairness in text classification through robustness", 2019.
- :func:`patterns` writes short sentences from a grammar: hostile and harmless ones that share their identities and
  most of their words, so that only the construction tells them apart. Balancing by added clean sentences is due to
  Dixon et al., "Measuring and mitigating unintended bias in text classification", 2018.

All sentences, patterns and lists here were written for Tritox; none comes from a test suite. The hostile ones are
here to be recognised.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNKNOWN = math.nan
FORMS = ("singular", "plural", "adjective", "name")


@dataclass(frozen=True)
class Identity:
    """An identity in the forms that grammar tells apart; the first wording of a form is the one that is written.

    :param name: the faith: what has no person in it.
    :param guarded: the adjective also means something else (black, old), and counts only before a word for people.
    """

    singular: tuple[str, ...] = ()
    plural: tuple[str, ...] = ()
    adjective: tuple[str, ...] = ()
    name: tuple[str, ...] = ()
    guarded: bool = False


def _noun(noun: str, adjective: str = "", name: str = "", plural: str = "") -> Identity:
    """An identity with a noun of its own: Muslim, Muslims, Muslim people."""
    adjective, plural = adjective or noun, plural or noun + "s"
    return Identity(
        (noun, f"{adjective} person"),
        (plural, f"{adjective} people", f"{adjective} folks"),
        (adjective,),
        (name,) if name else (),
    )


def _adjective(adjective: str, *more: str, plural: tuple[str, ...] = (), guarded: bool = False) -> Identity:
    """An identity that has an adjective only: trans, trans people."""
    words = (adjective, *more)
    return Identity(
        tuple(f"{w} person" for w in words),
        tuple(f"{w} people" for w in words) + tuple(f"{w} folks" for w in words) + plural,
        words,
        guarded=guarded,
    )


LEXICON: dict[str, tuple[Identity, ...]] = {
    "religion": (
        _noun("Muslim", name="Islam"),
        _noun("Christian", name="Christianity"),
        _noun("Jew", "Jewish", "Judaism"),
        _noun("Hindu", name="Hinduism"),
        _noun("Buddhist", name="Buddhism"),
        _noun("Sikh", name="Sikhism"),
        _noun("Catholic", name="Catholicism"),
        _noun("Protestant", name="Protestantism"),
        _noun("Mormon", name="Mormonism"),
        _noun("atheist", name="atheism"),
    ),
    "ethnicity": (
        _adjective("black", plural=("blacks",), guarded=True),
        _adjective("white", plural=("whites",), guarded=True),
        _adjective("brown", guarded=True),
        _adjective("Indigenous", "Aboriginal"),
        _adjective("Chinese"),
        _adjective("Japanese"),
        _adjective("Vietnamese"),
        _adjective("Irish"),
        _adjective("Roma", "Romani"),
        _noun("Asian"),
        _noun("African"),
        _noun("African American", "African-American"),
        _noun("Native American"),
        _noun("Latino"),
        _noun("Hispanic"),
        _noun("European"),
        _noun("Arab"),
        _noun("Mexican"),
        _noun("Nigerian"),
        _noun("Somali"),
        _noun("Indian"),
        _noun("Pakistani"),
        _noun("Turk", "Turkish"),
        _noun("Kurd", "Kurdish"),
        _noun("Iranian"),
        _noun("Syrian"),
        _noun("Palestinian"),
        _noun("Israeli"),
        _noun("Russian"),
        _noun("Romanian"),
        _noun("Korean"),
        _noun("German"),
        _noun("Italian"),
    ),
    "migration": (
        _noun("immigrant"),
        _noun("migrant"),
        _noun("refugee"),
        Identity(("asylum seeker",), ("asylum seekers",)),
        Identity(("foreigner",), ("foreigners",), ("foreign",), guarded=True),
    ),
    "orientation": (
        _adjective("gay", plural=("gays",)),
        _noun("lesbian"),
        _noun("bisexual"),
        _noun("homosexual"),
        _noun("heterosexual"),
        _adjective("straight", guarded=True),
        _adjective("queer"),
        _adjective("asexual"),
        _adjective("LGBT", "LGBTQ"),
    ),
    "gender": (
        Identity(("woman",), ("women",), ("female",)),
        Identity(("man",), ("men",), ("male",)),
        _adjective("trans", "transgender"),
        _adjective("non-binary", "nonbinary"),
        Identity(("trans woman",), ("trans women",)),
        Identity(("trans man",), ("trans men",)),
        Identity(("transsexual",), ("transsexuals",), ("transsexual",)),
    ),
    "disability": (
        _adjective("disabled", plural=("the disabled",)),
        _adjective("blind", guarded=True),
        _adjective("deaf", guarded=True),
        _adjective("autistic"),
        _adjective("paralysed", "paralyzed"),
        _adjective("mentally ill", plural=("the mentally ill",)),
        _adjective("mentally disabled", "mentally handicapped", "intellectually disabled"),
        _adjective("handicapped"),
        Identity(("wheelchair user",), ("wheelchair users",)),
        Identity(("person with Down syndrome",), ("people with Down syndrome",)),
        Identity(("person with a disability",), ("people with disabilities",)),
    ),
    "age": (
        _adjective("old", "elderly", plural=("the elderly",), guarded=True),
        _adjective("young", "younger", guarded=True),
        _adjective("middle-aged"),
        Identity(("teenager",), ("teenagers", "teens"), ("teenage",)),
        Identity(("pensioner",), ("pensioners", "retirees")),
        Identity(("millennial",), ("millennials",), ("millennial",)),
    ),
}
"""Identity terms by group. A term is replaced by one of the same group in the same form."""

WEIGHTS = {
    "religion": 5,
    "ethnicity": 6,
    "migration": 4,
    "orientation": 5,
    "gender": 6,
    "disability": 4,
    "age": 1,
}
"""How often the patterns name a group: those that are attacked most, most often."""

OFTEN = {"Muslim", "Jew", "black person", "gay person", "trans person", "woman", "immigrant", "disabled person"}
"""Identities that the patterns name three times as often as the others of their group."""

_PEOPLE = (
    "people person persons man woman men women guy guys boy boys girl girls kid kids child children folk folks male "
    "males female females lady ladies dude dudes couple couples community communities family families student students"
).split()
_DETERMINERS = (
    "a an the this that one another every any some no each single old young white black gay such first only "
    "poor real married"
).split()
_NO_NOUN = (
    "is was are were be been being am has have had do does did and or but nor who whom whose which that than then in "
    "on at of to from for with by as if because so not should would could will can may might must i you he she it we "
    "they my your his her its our their the a an just too also here there now when where while said says"
).split()


def _terms() -> dict[str, list[tuple[str, int, str]]]:
    """Each wording in lower case, with every (group, number in the group, form) that it may stand for."""
    found: dict[str, list[tuple[str, int, str]]] = {}
    for group, identities in LEXICON.items():
        for number, identity in enumerate(identities):
            for form in FORMS:
                for wording in getattr(identity, form):
                    found.setdefault(wording.lower(), []).append((group, number, form))
    return found


_TERMS = _terms()
_WORD = re.compile(r"(?<![\w-])\w+")


def _by_first_word() -> dict[str, re.Pattern[str]]:
    """For the first word of wordings, what finds them; longer ones before shorter ones."""
    groups: dict[str, list[str]] = {}
    for wording in sorted(_TERMS, key=len, reverse=True):
        groups.setdefault(re.split(r"\W", wording)[0], []).append(re.escape(wording))
    return {first: re.compile(rf"(?:{'|'.join(group)})(?![\w-])", re.I) for first, group in groups.items()}


_STARTS = _by_first_word()


def _matches(text: str) -> Iterator[re.Match[str]]:
    end = 0
    for word in _WORD.finditer(text):
        start = _STARTS.get(word[0].lower())
        match = start.match(text, word.start()) if start and word.start() >= end else None
        if match:
            end = match.end()
            yield match


@dataclass(frozen=True)
class _Mention:
    start: int
    end: int
    group: str
    number: int
    form: str


def mentions(text: str) -> list[_Mention]:
    """Where ``text`` names an identity of :data:`LEXICON`, and in which form."""
    found = []
    for match in _matches(text):
        meanings = _TERMS[match[0].lower()]
        group, number, form = meanings[0]
        near = text[max(0, match.start() - 40) : match.start()], text[match.end() : match.end() + 40]
        before, after = re.search(r"([\w'-]+) $", near[0]), re.match(r" ([\w'-]+)", near[1])
        previous, following = (m[1].lower() if m else "" for m in (before, after))
        forms = {m[2] for m in meanings}
        if forms == {"singular", "adjective"}:
            noun_follows = bool(following) and following not in _NO_NOUN
            form = "singular" if previous in _DETERMINERS and not noun_follows else "adjective"
        if form == "adjective" and LEXICON[group][number].guarded and following not in _PEOPLE:
            continue
        if match[0].lower() in ("man", "woman") and previous not in _DETERMINERS:
            continue  # "oh man"
        found.append(_Mention(match.start(), match.end(), group, number, form))
    return found


def counterfactuals(texts: Sequence[str], labels: np.ndarray, share: float, seed: int) -> tuple[list[str], np.ndarray]:
    """New comments: those that name an identity, with another one of the same group and form in its place.

    All mentions of one identity in a comment become the same other identity; case and the article before it are kept
    right. Labels are copied. A comment is repeated several times where ``share`` is above 1.

    :param labels: *Shape:* ``(comments, labels)``
    :param share: new comments per comment that names an identity; such comments are picked at random.
    :returns: the new texts, and their labels. *Shape:* ``(new comments, labels)``
    :raises ValueError: when ``share`` is below 0.
    """
    if share < 0:
        raise ValueError(f"the share of counterfactuals is {share}, must be at least 0")
    rng = random.Random(seed)
    named = [(i, found) for i, text in enumerate(texts) if (found := mentions(text))]
    wanted, seen, barren = round(share * len(named)), set(texts), 0
    out: list[str] = []
    rows: list[int] = []
    while len(out) < wanted and barren < 50:  # so many rounds without a new text: all are written
        before = len(out)
        for i, found in rng.sample(named, len(named)):
            if len(out) == wanted:
                break
            text = _replaced(texts[i], found, rng)
            if text is not None and text not in seen:
                seen.add(text)
                out.append(text)
                rows.append(i)
        barren = barren + 1 if len(out) == before else 0
    return out, labels[rows]


def _replaced(text: str, found: Sequence[_Mention], rng: random.Random) -> str | None:
    """``text`` with one of its identities, or each of them, replaced; ``None`` where no other one has the forms."""
    chosen: dict[tuple[str, int], int] = {}
    for group, number in dict.fromkeys((m.group, m.number) for m in found):
        forms = {m.form for m in found if (m.group, m.number) == (group, number)}
        taken = {number, *(new for (g, _), new in chosen.items() if g == group)}
        others = [
            n for n, other in enumerate(LEXICON[group]) if n not in taken and all(getattr(other, f) for f in forms)
        ]
        if others:
            chosen[group, number] = rng.choice(others)
    if not chosen:
        return None
    out, position = "", 0
    for m in found:
        if (m.group, m.number) not in chosen:
            continue
        old, identity = text[m.start : m.end], LEXICON[m.group][chosen[m.group, m.number]]
        own = getattr(LEXICON[m.group][m.number], m.form)
        new = _in_case_of(old, own, getattr(identity, m.form)[0])
        out += _article(text[position : m.start], new) + new
        position = m.end
    return out + text[position:]


def _in_case_of(old: str, wordings: Sequence[str], new: str) -> str:
    if old.isupper() and len(old) > 1 and old not in wordings:
        return new.upper()
    if old not in wordings:
        if old.islower():
            return new.lower()
        if old[0].isupper():
            return new[0].upper() + new[1:]
    return new


def _article(before: str, word: str) -> str:
    """``before`` with an article at its end that fits ``word``: "a " or "an "."""

    def fit(match: re.Match[str]) -> str:
        right = "an" if re.match(r"(?!eu|uni|use)[aeiou]|LGBT", word, re.I) else "a"
        if match[1].isupper() and len(match[1]) > 1:
            return right.upper() + match[2]
        return (right.capitalize() if match[1][0].isupper() else right) + match[2]

    return re.sub(r"\b(an?)(\s)$", fit, before, flags=re.I)


# --- patterns ---------------------------------------------------------------------------------------------------------
# {plural}, {singular} (with its article), {adjective} and {name} are the identity of the sentence, {others} another one
# in the plural, the rest are slots. Within a slot, entries may hold slots.

SLOTS: dict[str, Sequence[str]] = {
    # what hostility is made of
    "vile": (
        "disgusting|disgusting|disgusting|filthy|stupid|worthless|evil|dirty|ugly|lazy|violent|inferior|repulsive|vile|pathetic|sick|dumb|"
        "corrupt|immoral|brainless|primitive|backward|greedy|treacherous|revolting|useless|dangerous|dishonest|"
        "uncivilised|perverted|cowardly|rotten|unnatural|gross|nasty|mentally deficient|abnormal|horrible|despicable"
    ).split("|"),
    "beasts": (
        "rats|cockroaches|parasites|animals|pigs|dogs|leeches|maggots|insects|apes|vermin|lice|ticks|snakes|a plague|"
        "a disease|a cancer|a virus|an infestation|a tumour on this nation|garbage|trash|scum|filth|human waste|sewage|"
        "subhuman|less than human|not even human|mould|a swarm of locusts|a stain on humanity|a pest|weeds"
    ).split("|"),
    "crooks": (
        "criminals|thieves|liars|cheats|rapists|terrorists|freaks|perverts|degenerates|idiots|morons|savages|losers|"
        "traitors|scroungers|murderers|predators|monsters|con artists|barbarians|imbeciles|lunatics|sluts|gold-diggers"
    ).split("|"),
    "loathe": (
        "hate|hate|hate|hate so much|despise|detest|loathe|can't stand|"
        "cannot stomach|am sick of|am disgusted by|have only contempt for|"
        "want nothing to do with|abhor|feel sick when I see|can't tolerate|really hate|fucking hate|have always hated"
    ).split("|"),
    "harm": (
        "kill|kill|kill|kill|kill|kill|shoot|hang|burn|beat up|stab|exterminate|wipe out|drown|strangle|gas|lynch|"
        "butcher|slaughter|torture|run over|attack|smash the skulls of|poison|bury|hunt down|hurt|punch|get rid of|"
        "eradicate|execute"
    ).split("|"),
    "harmed": (
        "killed|killed|killed|shot|hanged|burned|beaten up|stabbed|exterminated|wiped out|drowned|strangled|gassed|"
        "lynched|slaughtered|tortured|poisoned|hunted down|hurt|executed|eradicated|whipped|stoned|put down|"
        "put to sleep|put against a wall|crushed|eliminated"
    ).split("|"),
    "expelled": (
        "deported|thrown out of the country|locked up|sent back|kicked out|put in camps|sterilised|banned from our "
        "schools|excluded from society|kept away from children|driven out of town|stripped of their rights|denied "
        "a passport|shipped off somewhere far away|forced to leave|fenced off|segregated|removed from our "
        "neighbourhoods|fired from every job|kept out of public life|rounded up"
    ).split("|"),
    "rights": (
        "vote|have children|live among us|own property|sit next to our kids|show their faces in public|marry|teach|"
        "raise kids|hold office|walk our streets|use our hospitals|drive|have an opinion|breathe the same air as us|"
        "adopt|get benefits|stay in this country|speak in public|have jobs|be doctors|be allowed outside"
    ).split("|"),
    "good_things": (
        "respect|human rights|compassion|sympathy|equality|a vote|protection by the law|any help|a place here|love|"
        "decent jobs|to be treated as equals|dignity|our pity|a voice|freedom"
    ).split("|"),
    "good_traits": (
        "clever|honest|trustworthy|human|normal|welcome here|equal to the rest of us|civilised|capable of thinking|"
        "worth listening to|fit to lead|real people|decent|moral|clean|able to love"
    ).split("|"),
    "sly": (
        "you know how {plural} are, so hide your wallet|there is a reason nobody wants {plural} as neighbours|"
        "{plural} only ever think of themselves|you can't expect {plural} to understand something that complicated|"
        "a job like that is too hard for {plural}|{plural} always play the victim|show me {singular} who works for a "
        "living, I'll wait|it would be a nice town if it wasn't for all the {plural}|once {plural} move in, you may "
        "as well sell your house|{plural} have no business being in charge of anything|never trust {singular}|"
        "{plural} were put on this earth to serve the rest of us|I would be ashamed to have {singular} in my family|"
        "{plural} ruin everything they touch|every {adjective} person I ever met was a liar|{plural} don't belong here|"
        "this used to be a good country before {plural}|no child should have to grow up around {plural}|"
        "{plural} should know their place|being {adjective} is a sickness|being {adjective} is something to be "
        "ashamed of|{plural} can't help being {vile}, it is how they are born|{plural} breed like rabbits|"
        "{plural} are the reason crime is up|I don't want {plural} touching my food|"
        "no wonder the company failed, it was run by {plural}|{plural} contribute nothing|"
        "God made a mistake with {plural}|normal people and {plural} do not mix|nobody will ever love {singular}|"
        "{plural} are all the same|{plural} control the media and the banks|{plural} are taking over|"
        "{plural} are faking it for attention|{plural} are a burden on the rest of us|"
        "you can smell {plural} before you see them|our taxes only feed {plural}|{plural} want to replace us|"
        "{plural} are good for one thing only, and it isn't thinking|{plural} were better off in chains|"
        "{plural} belong in the kitchen or in the ground|{plural} belong in an asylum"
    ).split("|"),
    "swear": "fucking|goddamn|bloody|damn|shitty|fuckin|motherfucking|godforsaken".split("|"),
    # harmless hate and killing
    "thing": (
        "Mondays|this weather|my laptop|traffic|that printer|olives|broccoli|software updates|this film|adverts|"
        "mosquitoes|the weeds in my garden|spreadsheets|alarm clocks|long meetings|paperwork|cold soup|wet socks|"
        "pop-up windows|waiting in line|the new logo|spam|being late|this font|raw onions|airports|"
        "reality shows|my commute|homework|the smell of paint|black licorice|white chocolate|flies|captchas|"
        "password rules|winter|this level|the ending of that book|the off-side rule|dishes|mould|rats in the cellar|"
        "cancer|racism|injustice|war|bullying|poverty|slow internet|bad coffee|cockroaches in the kitchen|ants"
    ).split("|"),
    "one_thing": (
        "this printer|that phone|this update|my old car|the new interface|this song|that sandwich|this chair|the bus "
        "service|that plot twist|this keyboard|the vending machine|my alarm clock|this router|the second season|"
        "that referee decision|the coffee here|this lawn mower|that hotel bed|the weather|my bike|this tax form"
    ).split("|"),
    "awful": (
        "garbage|trash|useless|terrible|disgusting|the worst|junk|rubbish|a disaster|horrible|a joke|pathetic|ugly|"
        "stupid|a piece of crap|a nightmare|vile|filthy|worthless|crap|absolute scum of a product|a pain"
    ).split("|"),
    "killing": (
        "this heat is killing me|kill the process and start it again|my feet are killing me after that walk|"
        "she absolutely killed it on stage last night|kill the lights when you leave|these deadlines will be the "
        "death of me|the joke had me dying|we got destroyed in the final, 5 to 0|let's shoot some hoops later|I could "
        "murder a pizza right now|he shot a great film about the sea|that exam slaughtered me|delete the "
        "parent and the child gets killed too|hang your coat over there|burn the CD before the party|I'd kill for "
        "a cup of tea|drown your pancakes in syrup|he bombed his driving test|the battery died again|the bill was "
        "killed in committee|the frost killed my tomatoes|we should crush the garlic first|execute the script as root|"
        "beat the eggs until stiff|I am going to hunt down that missing receipt|a cut budget strangles the project|"
        "the new vaccine kills the virus within hours|exterminate the rats before they get into the flour|"
        "get rid of the cockroaches under the sink|parasites such as ticks must be removed at once|"
        "the dog has lice and should be treated|this plague killed a third of Europe|the disease should be eradicated"
    ).split("|"),
    "person": (
        "you|my boss|my ex|that guy|this admin|the guy upstairs|my landlord|whoever wrote this|the last speaker|Kevin|"
        "my cousin Rob|Mr Harris|Linda from accounting|the coach|that reviewer|my old teacher|the bus driver|Sarah|"
        "the man who stole my bike|the new manager|Tom"
    ).split("|"),
    "trade": (
        "bankers|landlords|politicians|vegans|cyclists|smokers|lawyers|gamers|estate agents|tax inspectors|"
        "telemarketers|referees|journalists|economists|influencers|socialists|libertarians|conservatives|liberals|"
        "billionaires|football fans|hipsters|bloggers|tourists|dog owners|meat eaters|bureaucrats|managers|"
        "spammers|traffic wardens|critics|consultants|shareholders|anti-vaxxers|flat-earthers|hackers|lobbyists|"
        "drunk drivers|poachers|scammers|Nazis|racists|sexists|burglars|dictators"
    ).split("|"),
    # kindness and plain life
    "lovely": (
        "wonderful|kind|brilliant|generous|lovely|funny|clever|brave|hard-working|welcome|great|beautiful|talented|"
        "thoughtful|amazing|strong|patient|friendly|inspiring|fantastic|valued|equal"
    ).split("|"),
    "adore": (
        "love|admire|respect|adore|like|appreciate|support|am proud of|am grateful for|stand with|enjoy working with|"
        "learned so much from|care about|am friends with many|think highly of|would love to meet more"
    ).split("|"),
    "role": (
        "neighbour|teacher|doctor|friend|colleague|nurse|author|singer|professor|mayor|cousin|dentist|flatmate|boss|"
        "plumber|painter|engineer|coach|grandmother|judge|driver|baker|student|soldier|scientist|senator|librarian"
    ).split("|"),
    "doing": (
        "opened a bakery on our street|moved in next door last week|teaches maths at my school|won the chess "
        "tournament|is getting married in May|wrote a book about rivers|helped me carry my shopping|is looking for a "
        "new flat|plays the cello|has two cats|works nights at the hospital|fixed our roof|is running for the council|"
        "sings in a choir|was on the radio this morning|is on holiday until Friday|asked for the minutes of a meeting|"
        "grew up in a small village|speaks four languages|lost the keys again|missed the train|is watching the match|"
        "is angry about the new parking fees|broke an arm while skiing|complained about the cold food"
    ).split("|"),
    "they_do": (
        "live in my street|work in this office|came to the meeting|play in the local team|are looking for somewhere "
        "to pray|founded the orchestra|have lived here for centuries|run the shop on the corner|vote in the same "
        "places as everyone else|were interviewed for the article|celebrated in the park on Sunday|are mentioned in "
        "the second paragraph|signed the petition|attend the university|met the minister last week|face long waits at "
        "the clinic|organised the festival|served in the war|earn less on average|are under-represented in parliament|"
        "drink coffee and complain about the weather like all of us|pay their taxes|took the late bus"
    ).split("|"),
    "wrong": (
        "wrong|disgusting|shameful|unacceptable|vile|a disgrace|hateful|plain racism|bigotry|horrible|cruel|ignorant|"
        "hate speech|unforgivable|stupid|not okay|dehumanising"
    ).split("|"),
    "smear": (
        "{plural} are {beasts}|{plural} are {vile}|{plural} are all {crooks}|{plural} should be {harmed}|"
        "{plural} should be {expelled}|I {loathe} {plural}|{plural} do not deserve {good_things}|kill all {plural}|"
        "{plural} must not {rights}|being {adjective} is a disease|{swear} {plural}|we would be better off without "
        "{plural}|{plural} ruin everything"
    ).split("|"),
    # around a sentence
    "opener": (
        "Honestly|Look|Well|To be fair|I mean|Listen|Seriously|As I said|Sorry|Fact|Just saying|Let me be clear|"
        "News flash|In my experience|At the end of the day|Hey|So|Yeah|By the way|If you ask me|People|Hot take"
    ).split("|"),
    "closer": (
        "lol|tbh|imo|period|end of story|just saying|and that's that|I said it|smh|every time|for real|"
        "as everyone knows|believe me|seriously|again|today|haha|and I mean it|thanks"
    ).split("|"),
    "aside": (
        "I was on the bus this morning.|I have been reading this thread for an hour.|See the talk page for more.|"
        "My sister sent me this link.|It was raining all day.|I looked at the sources.|The match starts at eight.|"
        "Someone had to say it.|Nobody asked, I know.|I wrote to the editors about it.|This came up at dinner.|"
        "You can read the whole article.|It is late and I should sleep.|The second paragraph needs a reference.|"
        "We talked about it at work.|I just watched the news.|Make of that what you will.|I live in a small town."
    ).split("|"),
}


@dataclass(frozen=True)
class _Family:
    """Patterns that share their labels; ``weight`` is how many of them there are among the others."""

    weight: float
    labels: Mapping[str, float]
    patterns: Sequence[str]


def _labels(
    toxic: float, hate: float, *, obscene: float = 0.0, threat: float = 0.0, insult: float = 0.0
) -> dict[str, float]:
    severe = 0.0 if toxic == 0 else UNKNOWN
    return {
        "toxic": toxic,
        "severe_toxic": severe,
        "obscene": obscene,
        "threat": threat,
        "insult": insult,
        "identity_hate": hate,
    }


_CLEAN = _labels(0, 0)
_DEROGATION = _labels(1, 1, insult=UNKNOWN)
_THREAT = _labels(1, 1, threat=1, insult=UNKNOWN)

FAMILIES: dict[str, _Family] = {
    "derogation": _Family(
        9,
        _DEROGATION,
        (
            "{plural} are {vile} by nature",
            "{plural} are so {vile} it hurts",
            "{plural} are nothing but {beasts}",
            "all {plural} are {vile} {crooks}",
            "how {vile} {plural} are",
            "I {loathe} {plural} and everything about them",
            "I {loathe} every single {adjective} person on this planet",
            "I {loathe} {plural} more than anything",
            "God, I hate {plural} with a passion",
            "everybody hates {plural}, and rightly so",
            "I hate every {adjective} family in this town",
            "hate is too weak a word for what I feel about {plural}",
            "most {plural} are {crooks}, and the rest are {vile}",
            "{plural} and {others} are equally {vile}",
            "you {adjective} people are {beasts}",
            "you are {singular}, so of course you are {vile}",
            "what a {vile} bunch {plural} are",
            "{singular} is about as useful as {beasts}",
            "{plural} are like {beasts}: they spread and nobody wants them",
            "compared to {plural}, {beasts} are good company",
            "the {adjective} lot are {crooks}, every one of them",
            "{plural} make me sick",
            "{plural} disgust me",
            "the mere sight of {singular} makes me want to throw up",
            "I would rather eat glass than work with {singular}",
            "the problem with this country is {plural}",
            "{plural} are the lowest form of life",
            "there is nothing more {vile} than {singular}",
            "typical {adjective} behaviour, {vile} and {vile}",
            "shut up, nobody cares what {plural} think",
            "{plural} have the brains of {beasts}",
            "I have yet to meet {singular} who isn't {vile}",
            "filthy {adjective} scum",
            "{adjective} {beasts}",
            "these {vile} {plural} again",
            "being around {plural} makes my skin crawl",
        ),
    ),
    "implied": _Family(8, _DEROGATION, ("{sly}", "{sly}", "{sly}, {closer}", "{opener}, {sly}")),
    "negated praise": _Family(
        4,
        _DEROGATION,
        (
            "{plural} are not {good_traits}",
            "{plural} will never be {good_traits}",
            "{plural} do not deserve {good_things}",
            "{plural} deserve no {good_things}",
            "don't ever call {singular} {good_traits}",
            "nobody should give {plural} {good_things}",
            "no {adjective} person has ever been {good_traits}",
            "{plural} must not be allowed to {rights}",
            "{plural} shouldn't {rights}",
            "I don't see why {plural} get to {rights}",
            "I can't think of one good thing about {plural}",
            "{plural} have never achieved anything",
            "not one of these {plural} is {good_traits}",
            "we owe {plural} nothing, least of all {good_things}",
        ),
    ),
    "exclusion": _Family(
        4,
        _labels(1, 1, threat=UNKNOWN, insult=UNKNOWN),
        (
            "people like {plural} should be {expelled}",
            "{plural} should be {expelled}",
            "{plural} need to be {expelled} before it is too late",
            "why haven't {plural} been {expelled} yet",
            "I will vote for anyone who gets {plural} {expelled}",
            "a decent country would have its {plural} {expelled}",
            "get {plural} out of here, now",
            "no more {plural} in our town",
            "{plural} out",
            "send every last {adjective} person away and never let them back",
            "I don't want {plural} to {rights}",
            "keep {plural} away from us",
            "the world would be better without {plural}",
            "I wish {plural} did not exist",
            "life would be so much nicer with no {plural} around",
        ),
    ),
    "threat": _Family(
        7,
        _THREAT,
        (
            "I will {harm} {plural} with my own hands",
            "I am going to {harm} the first {adjective} person who comes through that door",
            "we are coming to {harm} you {plural}",
            "someone should {harm} {plural}",
            "somebody please {harm} those {plural}",
            "{plural} should be {harmed}",
            "all {plural} ought to be {harmed}, no exceptions",
            "{plural} have to be {harmed} to make this place safe",
            "{plural} deserve to be {harmed}",
            "the only good {plural} are dead ones",
            "{plural} had better watch their backs",
            "one day {plural} will get what they deserve and I will be there to do it",
            "I want to see {plural} {harmed}",
            "it is time to {harm} {plural}",
            "let's go and {harm} some {plural} tonight",
            "if I meet {singular}, I will {harm} them",
            "every {adjective} family should be {harmed}",
            "we must {harm} {plural} wherever we find them",
            "I hope {plural} get {harmed}",
            "I hope all {plural} die slowly",
            "death to {plural}",
            "kill all the {plural} you can find",
            "kill every {adjective} person you meet",
            "kill {plural} before they kill us",
            "you are {singular}? then I know where you live and I will {harm} you",
            "whoever decides to {harm} {plural} has my thanks",
            "I'd happily {harm} {plural} if it were legal",
        ),
    ),
    "profane hate": _Family(
        4,
        _labels(1, 1, obscene=1, insult=UNKNOWN, threat=UNKNOWN),
        (
            "fuck {plural}",
            "fuck all those {adjective} people",
            "{swear} {plural}",
            "these {swear} {plural} should be {expelled}",
            "{plural} are full of shit",
            "{plural} are pieces of shit",
            "{plural} can go fuck themselves",
            "I don't give a shit what {plural} want, they are {beasts}",
            "{swear} {plural}, always {vile}",
            "{plural} are {swear} {beasts}",
            "what the fuck is wrong with {plural}, are they {beasts}",
            "get your {adjective} ass out of my country, you {beasts}",
            "{plural} are assholes, all of them",
            "{adjective} bitches and their {swear} whining",
        ),
    ),
    "later reference": _Family(
        5,
        _labels(1, 1, insult=UNKNOWN, threat=UNKNOWN),
        (
            "{plural} moved in next door, and I hope they get {harmed}",
            "so many {plural} on the bus today. They are {beasts}",
            "I met {singular} yesterday. What a {vile} creature, like all of them",
            "I see {plural} everywhere now. Someone should {harm} them",
            "my office hired {singular}. These people should be {expelled}",
            "we have a lot of {plural} here, and every one of them is {vile}",
            "those are {plural}. Don't let them {rights}",
            "{plural} came to the meeting. I {loathe} that kind",
            "he married {singular}. That sort should be {harmed}",
            "{plural}? They are {crooks}",
            "{plural}. I {loathe} them",
            "look at those {plural}. They don't deserve {good_things}",
            "you know who lives there? {plural}. Burn it down with them in it",
            "I used to teach {plural}; they are too {vile} to learn anything",
            "I have nothing against most people, but {plural} are another matter, I {loathe} them",
            "some say {plural} are {lovely}. They are not, they are {vile}",
        ),
    ),
    "question or opinion": _Family(
        6,
        _labels(1, 1, insult=UNKNOWN, threat=UNKNOWN),
        (
            "why are {plural} so {vile}?",
            "why do we let {plural} {rights}?",
            "who else thinks that {plural} are {beasts}?",
            "is it just me or are {plural} {vile}?",
            "isn't it time that {plural} were {expelled}?",
            "when will somebody {harm} {plural}?",
            "how can anyone stand {plural}?",
            "what is the point of {plural}?",
            "do {plural} know how {vile} they are?",
            "does anyone believe that {plural} are {good_traits}?",
            "what is the difference between {plural} and {beasts}? None",
            "would anybody miss {plural} if they were {harmed}?",
            "I think {plural} are {beasts}",
            "in my opinion {plural} are {vile}",
            "I am convinced that {plural} should be {expelled}",
            "my view is that {plural} deserve to be {harmed}",
            "it is a fact that {plural} are {crooks}",
            "everyone knows that {plural} are {vile}",
            "call me what you want, but {plural} are {vile}",
            "I'm not prejudiced, but {sly}",
            "unpopular opinion: {sly}",
            "I firmly believe {plural} should not {rights}",
            "science says {plural} are {vile}, don't blame me",
            "they will ban me for saying it, but {plural} are {beasts}",
        ),
    ),
    # --- harmless, with the same identities
    "neutral": _Family(
        14,
        _CLEAN,
        (
            "some {plural} {they_do}",
            "many {plural} {they_do}",
            "{plural} {they_do}",
            "{plural} and {others} {they_do}",
            "the {plural} I know {they_do}",
            "I am {singular}",
            "I am {singular} and I live in a small town",
            "my {role} is {singular}",
            "my {adjective} {role} {doing}",
            "an {adjective} {role} {doing}",
            "our {role} is {adjective} and {doing}",
            "she is {singular} who {doing}",
            "as {singular} I would like to add a source to this section",
            "the article is about {plural} in the nineteenth century",
            "how many {plural} live in this city?",
            "is there a word for {plural} in Finnish?",
            "are you {singular}?",
            "he told me that he was {adjective}, and then we went for lunch",
            "{plural} are people",
            "there are {plural} in every country",
            "the survey asked {plural} about their health",
            "the report counts {plural} separately from {others}",
            "a film about {singular} who {doing}",
            "I was raised by {plural}",
            "two {adjective} {role}s talked about gardening",
            "this group is for {plural}",
            "the mayor spoke with {plural} about housing",
            "being {adjective} is one part of who I am",
        ),
    ),
    "positive": _Family(
        12,
        _CLEAN,
        (
            "I {adore} the {plural} on my team",
            "I {adore} {plural} and their families",
            "{plural} are {lovely} company",
            "{plural} are {lovely} and {lovely}",
            "my {adjective} {role} is so {lovely}",
            "what a {lovely} {adjective} {role} we have",
            "{plural} deserve {good_things}",
            "{plural} should {rights}, like everybody else",
            "{plural} are {good_traits}, never doubt it",
            "happy to see more {plural} in our team",
            "it is great to be {singular}",
            "I am proud to be {adjective}",
            "we should listen to {plural} more",
            "nobody is more {lovely} than the {plural} at my work",
            "thank you to all the {plural} who helped",
            "{plural} make this town a better place",
            "some of the most {lovely} people I know are {adjective}",
            "{plural} need our support",
            "let's protect {plural}",
            "{plural} have every right to {rights}",
            "so glad that {plural} can {rights} now",
        ),
    ),
    "negated hate": _Family(
        8,
        _CLEAN,
        (
            "{plural} are not {beasts}",
            "{plural} are not {vile}",
            "{plural} aren't {crooks}, they are people like you and me",
            "no {adjective} person should be {harmed}",
            "{plural} should never be {harmed}",
            "{plural} do not deserve to be {harmed}",
            "nobody should {harm} {plural}",
            "don't {harm} {plural}",
            "we would never {harm} {plural}",
            "I do not hate {plural}",
            "I don't hate {plural} at all, I {adore} them",
            "I would never say that {plural} are {vile}",
            "it isn't true that {plural} are {crooks}",
            "not all {plural} think alike, and none of them is {vile} for being {adjective}",
            "{plural} must not be {expelled}",
            "I never wanted {plural} to be {expelled}",
            "being {adjective} is not a disease",
            "there is nothing wrong with being {adjective}",
            "{plural} are no more {vile} than anyone else",
            "nobody here thinks that {plural} are {beasts}",
            "you can't just call {plural} {beasts}",
            "stop hating {plural}",
            "it would be a crime to {harm} {plural}",
            "{plural} have done nothing wrong, leave them in peace",
        ),
    ),
    "counter-speech": _Family(
        10,
        _CLEAN,
        (
            'saying "{smear}" is {wrong}',
            "saying that {smear} is {wrong}",
            '"{smear}" - who still talks like that? It is {wrong}',
            'anyone who writes "{smear}" should be reported',
            'he shouted "{smear}" at my friend. That is {wrong}',
            'I was told "{smear}" at work, and I complained to my boss',
            'please do not use phrases like "{smear}" here',
            'how can you claim that "{smear}"? Shame on you',
            'you said "{smear}". That is {wrong}',
            "people who think that {smear} need help",
            "it is {wrong} to say {smear}",
            "whoever believes that {smear} has never met {singular}",
            'the politician was fined for the words "{smear}"',
            'the article quotes a banner that read "{smear}" and condemns it',
            'a song with the line "{smear}" has no place on the radio',
            "the claim that {smear} is {wrong}",
            '"{smear}" is {wrong}, full stop',
            "your hatred of {plural} is {wrong}",
            "hating {plural} is {wrong}",
            "attacks on {plural} are {wrong} and must stop",
            "anybody who hates {plural} should be ashamed",
            "calling {plural} {beasts} is {wrong}",
            'if I hear "{smear}" once more, I will leave this forum',
            "the court convicted the man who wanted to {harm} {plural}",
            "my {adjective} friend was attacked last night, I am so angry",
            "{plural} are still insulted and threatened every day, and that is {wrong}",
            "we must fight the idea that {smear}",
            "her speech against violence towards {plural} was {lovely}",
            'some people still think "{smear}". I think that is {wrong}',
        ),
    ),
    "grievance": _Family(
        3,
        _CLEAN,
        (
            "as {singular} I hate {thing}",
            "my {adjective} {role} hates {thing}",
            "I hate it when {plural} are treated badly",
            "I hate how {plural} are treated by the police",
            "it makes me sick how people talk about {plural}",
            "it is disgusting what happened to those {plural}",
            "{plural} get {harmed} for who they are, and nobody does anything",
            "last year many {plural} were {harmed} by extremists",
            "my {adjective} {role} died last week, I miss her",
            "{plural} like me are tired of being called {vile}",
            "the rats ate everything that the {adjective} {role} had stored",
            "I can't stand the way they mock {plural}",
        ),
    ),
    "things": _Family(
        5,
        _CLEAN,
        (
            "I hate {thing}",
            "I {loathe_mildly} {thing}",
            "{killing}",
            "{killing}",
            "{one_thing} is {awful}",
            "{one_thing} is {awful}, I want my money back",
            "{one_thing} should be thrown out",
            "why is {one_thing} so {awful}?",
            "I could throw {one_thing} out of the window",
            "{thing} make me sick",
            "get rid of {one_thing}, please",
            "nobody likes {thing}",
            "I really hate {thing}, {closer}",
            "burn {one_thing} and never speak of it again",
            "the only good thing about {thing} is when it ends",
            "{one_thing} deserves to die in a fire",
        ),
    ),
    # --- rude, but not for an identity
    "profanity": _Family(
        4,
        _labels(UNKNOWN, 0, obscene=1, insult=0),
        (
            "that was {swear} brilliant",
            "this is a {swear} good idea",
            "holy shit, what a goal",
            "fuck, I forgot my keys",
            "I am so {swear} tired",
            "what the fuck, we won",
            "shit, it is raining again",
            "{swear} hell, {one_thing} is {awful}",
            "I fucking love this band",
            "no fucking way, that is great news",
            "my {adjective} {role} is {swear} {lovely}",
            "I {swear} love {plural}",
            "fuck yes, {plural} won the right to marry",
            "fuck {thing}",
            "it is {swear} cold out here",
            "who the fuck cares, let's have a drink",
        ),
    ),
    "person": _Family(
        5,
        _labels(1, 0, insult=1, obscene=UNKNOWN),
        (
            "{person} makes me sick, what a {vile} human being",
            "you are {vile} and you know it",
            "you are a {vile} {vile} idiot",
            "you are such a {vile} person, get lost",
            "{person} can go to hell, the {vile} liar",
            "{person} is the most {vile} person I ever met",
            "what a moron {person} is",
            "I hate you, you {vile} creep of an editor",
            "nobody likes you, you are worthless",
            "you should be banned from this site, you clown",
            "{person}, that {vile} piece of garbage",
            "you belong in the trash, like everything you write",
            "are you really that {vile}?",
            "you are nothing but a parasite",
        ),
    ),
    "threat to a person": _Family(
        2,
        _labels(1, 0, threat=1, insult=UNKNOWN, obscene=UNKNOWN),
        (
            "I will {harm} you, mark my words",
            "I am going to {harm} {person} after school",
            "I know where you live and I will {harm} you",
            "I hope you get {harmed}",
            "you should be {harmed} for this edit",
            "you deserve to be {harmed}",
            "someone should {harm} {person}",
            "revert me again and I will {harm} you in your sleep",
        ),
    ),
    "trades": _Family(
        5,
        _labels(1, 0, insult=UNKNOWN, obscene=UNKNOWN, threat=UNKNOWN),
        (
            "{trade} are {vile}",
            "{trade} are {beasts}",
            "all {trade} are {crooks}",
            "I {loathe} {trade}",
            "{trade} should be {expelled}",
            "{trade} should be {harmed}",
            "fuck {trade}",
            "{trade} do not deserve {good_things}",
            "why are {trade} so {vile}?",
            "I think {trade} are nothing but {crooks}",
            "the world would be better without {trade}",
            "{trade} moved in next door. I {loathe} them",
            "{trade} make me sick",
        ),
    ),
}
"""What the patterns write, with the labels in Jigsaw's terms. Half of those with an identity are hostile.

``NaN`` is a label that annotators would differ on."""

SLOTS["loathe_mildly"] = "can't stand|am sick of|really dislike|detest|loathe|have had enough of|am fed up with".split(
    "|"
)

_SLOT = re.compile(r"\{(\w+)\}")


def patterns(names: Sequence[str], rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Written comments, no two alike: hostile, harmless and rude ones over the same identities and words.

    The labels are Jigsaw's six, or others by what they mean: ``hate`` and ``identity_attack`` are ``identity_hate``;
    ``regular`` and ``neither`` hold where no hate is; ``offensive`` holds for toxic comments without hate (with such
    a label, ``neither`` and ``regular`` hold where nothing toxic is). Some labels are NaN, unknown, as are those of
    another name. With ``regular`` or ``neither`` among the names each row has exactly one label.

    :param names: the labels wanted, in order.
    :returns: the texts, and their labels. *Shape:* ``(rows, len(names))``
    :raises ValueError: when ``rows`` is below 0, no name has a meaning here, or the grammar has not that many
        sentences.
    """
    if rows < 0:
        raise ValueError(f"the number of written comments is {rows}, must be at least 0")
    if not any(name.lower() in _MEANINGS for name in names):
        raise ValueError(f"none of the labels {', '.join(names)} is known here; known are {', '.join(_MEANINGS)}")
    rng = random.Random(seed)
    families = list(FAMILIES.values())
    weights = [family.weight for family in families]
    texts: dict[str, Mapping[str, float]] = {}
    tries = 0
    while len(texts) < rows:
        tries += 1
        if tries > 20 * rows + 1000:
            raise ValueError(f"{rows} written comments are wanted, the grammar gave {len(texts)}: ask for fewer")
        (family,) = rng.choices(families, weights)
        texts.setdefault(_styled(_sentence(rng.choice(family.patterns), rng), rng), family.labels)
    values = [[_value(name.lower(), names, labels) for name in names] for labels in texts.values()]
    return list(texts), np.array(values, np.float32).reshape(rows, len(names))


def _hate(labels: Mapping[str, float], offensive: bool) -> float:
    return labels["identity_hate"]


def _neither(labels: Mapping[str, float], offensive: bool) -> float:
    return float(labels["identity_hate"] == 0 and not (offensive and _rude(labels)))


def _offensive(labels: Mapping[str, float], offensive: bool) -> float:
    return float(labels["identity_hate"] == 0 and _rude(labels))


def _rude(labels: Mapping[str, float]) -> bool:
    return any(labels[key] == 1 for key in ("toxic", "obscene", "insult", "threat"))


def _same(key: str) -> Callable[[Mapping[str, float], bool], float]:
    return lambda labels, offensive: labels[key]


_MEANINGS: dict[str, Callable[[Mapping[str, float], bool], float]] = {
    **{key: _same(key) for key in _CLEAN},
    "toxicity": _same("toxic"),
    "severe_toxicity": _same("severe_toxic"),
    "identity_attack": _hate,
    "hate": _hate,
    "offensive": _offensive,
    "regular": _neither,
    "neither": _neither,
}


def _value(name: str, names: Sequence[str], labels: Mapping[str, float]) -> float:
    offensive = any(n.lower() == "offensive" for n in names)
    return _MEANINGS[name](labels, offensive) if name in _MEANINGS else UNKNOWN


def _identities() -> Iterator[tuple[Identity, float]]:
    for group, members in LEXICON.items():
        shares = [3.0 if member.singular[0] in OFTEN else 1.0 for member in members]
        for member, share in zip(members, shares, strict=True):
            yield member, WEIGHTS[group] * share / sum(shares)


_IDENTITIES, _CHANCES = zip(*_identities(), strict=True)


def _sentence(pattern: str, rng: random.Random) -> str:
    """``pattern`` with its slots filled, all forms from one identity that has them."""
    text = pattern
    while slots := [name for name in _SLOT.findall(text) if name in SLOTS]:
        text = text.replace("{" + slots[0] + "}", rng.choice(SLOTS[slots[0]]), 1)
    forms = set(_SLOT.findall(text)) & set(FORMS)
    while True:
        identity, other = rng.choices(_IDENTITIES, _CHANCES, k=2)
        if identity is not other and all(getattr(identity, form) for form in forms):
            break
    for form in _SLOT.findall(text):
        words = (other if form == "others" else identity).plural if form in ("plural", "others") else ()
        words = words or getattr(identity, form)
        word = words[0] if rng.random() < 0.6 else rng.choice(words)
        before, after = text.split("{" + form + "}", 1)
        if form == "singular":
            before += "a "
        text = _article(before, word) + word + after
    return text


def _styled(text: str, rng: random.Random) -> str:
    """The sentence as somebody might type it. What is done here says nothing about the labels."""
    if rng.random() < 0.12:
        text = f"{rng.choice(SLOTS['opener'])}, {text}"
    if rng.random() < 0.1 and text[-1] not in "?":
        text = f"{text}, {rng.choice(SLOTS['closer'])}"
    text = text[0].upper() + text[1:]
    if text[-1] not in "?!." and rng.random() < 0.75:
        text += rng.choice([".", ".", ".", "!", "!!", "..."])
    if rng.random() < 0.18:
        aside = rng.choice(SLOTS["aside"])
        text = f"{aside} {text}" if rng.random() < 0.5 else f"{text if text[-1] in '.!?' else text + '.'} {aside}"
    if rng.random() < 0.15:
        text = misspelt(text, rng)
    chance = rng.random()
    if chance < 0.25:
        return text.lower()
    return text.upper() if chance < 0.29 else text


def misspelt(text: str, rng: random.Random) -> str:
    """``text`` with the marks of a hurried or an evasive writer: in one or two of its longer words letters are
    swapped, dropped, doubled, spaced out or written as digits, or the space after a word is left out.
    """
    words = text.split(" ")
    longer = [i for i, word in enumerate(words) if len(word) >= 4]
    for i in rng.sample(longer, min(len(longer), rng.choice([1, 1, 2]))):
        word, at = words[i], rng.randrange(1, len(words[i]) - 2)
        words[i] = rng.choice(
            [
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] * rng.choice([2, 3]) + word[at + 1 :],
                " ".join(word),
                word.translate(str.maketrans("aeiost", "4310$7")),
                word + "\0",
            ]
        )
    return " ".join(words).replace("\0 ", "").replace("\0", "")
