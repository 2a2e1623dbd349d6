"""check.text_quality: rules of thumb by which text from the web is kept out of training sets, each by its name.

    gopher.*   Rae et al., Scaling language models (2021), appendix A.1.1: quality, and repetition (table A1)
    c4.*       Raffel et al., Exploring the limits of transfer learning (2020), section 2.2

A finding for each rule that a text breaks: `score` is how far what was measured lies outside of what the rule allows, in units of the bound
(0.1: by a tenth); what is forbidden altogether scores 1. Words are what stands between white space, lines between line ends, paragraphs
between empty lines, as in those papers. Rules about words are meant for languages that are written with spaces; `gopher.stop_words` is
for English. Nulls and empty texts are left to check.nulls and check.text_length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ClassVar, TypeAlias

import pyarrow as pa

from leptonstore.errors import BadInput, listed
from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.findings import findings_table
from leptonstore.process.operations.parameters import texts as names_of
from leptonstore.process.texts.characters import versions
from leptonstore.process.texts.column import text_column

Gram: TypeAlias = tuple[str, ...]

_SHORTEST_REPEATED = 5  # words of the shortest runs whose repetition counts
_STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
_BULLETS = ("•", "‣", "▪", "●", "-", "*")
_ENDS = (".", "!", "?", '"', "”", "'", "’", "…")
_SENTENCE_END = re.compile(r"[.!?。！？]")


class Text:
    """A text, and what several rules ask of it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._grams: dict[int, tuple[list[Gram], Counter[Gram]]] = {}

    def grams(self, size: int) -> tuple[list[Gram], Counter[Gram]]:
        """All runs of so many words, and how often each occurs."""
        if size not in self._grams:
            every = list(zip(*(self.words[at:] for at in range(size)), strict=False))
            self._grams[size] = every, Counter(every)
        return self._grams[size]

    @cached_property
    def words(self) -> list[str]:
        """Between white space."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """That are not empty."""
        return [line for one in self.text.split("\n") if (line := one.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Between empty lines."""
        return [part for one in re.split(r"\n[ \t]*\n", self.text) if (part := one.strip())]


@dataclass(frozen=True)
class Rule:
    """measure: of a text. It has to be from `least` to `most`. said: what is measured, for people; {} is its value."""

    measure: Callable[[Text], float]
    said: str
    least: float = 0.0
    most: float = float("inf")
    usual: bool = field(default=True, kw_only=True)  # whether it is applied when nobody says which

    def broken(self, value: float) -> float | None:
        """How far outside; None: it is inside."""
        if value < self.least:
            return (self.least - value) / self.least
        if value > self.most:
            return (value - self.most) / self.most if self.most else 1.0
        return None


def _share(count: float, whole: float) -> float:
    return count / whole if whole else 0.0


def _mean_word_length(text: Text) -> float:
    return _share(sum(map(len, text.words)), len(text.words))


def _symbols(text: Text) -> float:
    return _share(text.text.count("#") + text.text.count("…") + text.text.count("..."), len(text.words))


def _bullets(text: Text) -> float:
    return _share(sum(line.startswith(_BULLETS) for line in text.lines), len(text.lines))


def _ellipses(text: Text) -> float:
    return _share(sum(line.endswith(("…", "...")) for line in text.lines), len(text.lines))


def _alphabetic(text: Text) -> float:
    return _share(sum(any(map(str.isalpha, word)) for word in text.words), len(text.words)) if text.words else 1.0


def _stop_words(text: Text) -> float:
    return sum(word.lower() in _STOP_WORDS for word in text.words)


def _repeated(parts: Callable[[Text], list[str]], characters: bool, text: Text) -> float:
    """The share of parts that have stood in the text before; of their characters."""
    every = parts(text)
    seen: set[str] = set()
    again = [part for part in every if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    if characters:
        return _share(sum(map(len, again)), sum(map(len, every)))
    return _share(len(again), len(every))


def _top_gram(size: int, text: Text) -> float:
    """The share of the characters of words that the most frequent run of so many words takes: its occurrences times its characters."""
    _, counts = text.grams(size)
    if not counts:
        return 0.0
    gram, count = max(counts.items(), key=lambda one: (one[1], sum(map(len, one[0]))))
    return min(1.0, _share(count * sum(map(len, gram)), sum(map(len, text.words)))) if count > 1 else 0.0


def _repeated_grams(size: int, text: Text) -> float:
    """The share of the characters of words that stand in runs of so many words that occur more than once; each counts once."""
    if size > _SHORTEST_REPEATED and not _repeated_grams(_SHORTEST_REPEATED, text):
        return 0.0  # no shorter run occurs twice
    grams, counts = text.grams(size)
    inside, until = 0, 0
    for at, gram in enumerate(grams):
        if counts[gram] > 1:
            inside += sum(map(len, text.words[max(at, until) : at + size]))
            until = at + size
    return _share(inside, sum(map(len, text.words)))


def _lines(text: Text) -> list[str]:
    return text.lines


def _paragraphs(text: Text) -> list[str]:
    return text.paragraphs


def _unfinished(text: Text) -> float:
    return _share(sum(not line.endswith(_ENDS) for line in text.lines), len(text.lines))


RULES: dict[str, Rule] = {
    "gopher.words": Rule(lambda text: len(text.words), "{:,.0f} words", 50, 100_000),
    "gopher.word_length": Rule(_mean_word_length, "{:.1f} letters a word on average", 3, 10),
    "gopher.symbols": Rule(_symbols, "{:.2f} hashes and ellipses a word", most=0.1),
    "gopher.bullets": Rule(_bullets, "{:.0%} of lines begin with a bullet", most=0.9),
    "gopher.ellipses": Rule(_ellipses, "{:.0%} of lines end with an ellipsis", most=0.3),
    "gopher.alphabetic": Rule(_alphabetic, "{:.0%} of words have a letter", 0.8),
    "gopher.stop_words": Rule(_stop_words, "{:.0f} of the most frequent English words", 2, usual=False),
    "gopher.lines": Rule(partial(_repeated, _lines, False), "{:.0%} of lines are repeated", most=0.3),
    "gopher.line_characters": Rule(
        partial(_repeated, _lines, True), "{:.0%} of characters are in repeated lines", most=0.2
    ),
    "gopher.paragraphs": Rule(partial(_repeated, _paragraphs, False), "{:.0%} of paragraphs are repeated", most=0.3),
    "gopher.paragraph_characters": Rule(
        partial(_repeated, _paragraphs, True), "{:.0%} of characters are in repeated paragraphs", most=0.2
    ),
    **{
        f"gopher.top_{size}_words": Rule(
            partial(_top_gram, size), f"{{:.0%}} of it is one run of {size} words, again and again", most=most
        )
        for size, most in ((2, 0.20), (3, 0.18), (4, 0.16))
    },
    **{
        f"gopher.repeated_{size}_words": Rule(
            partial(_repeated_grams, size), f"{{:.0%}} of it is in repeated runs of {size} words", most=most
        )
        for size, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    },
    "c4.sentences": Rule(
        lambda text: len(_SENTENCE_END.findall(text.text)), "{:.0f} ends of sentences", 3, usual=False
    ),
    "c4.unfinished": Rule(_unfinished, "{:.0%} of lines do not end like a sentence", most=0.9, usual=False),
    "c4.braces": Rule(lambda text: text.text.count("{"), "{:,.0f} curly brackets", most=0, usual=False),
    "c4.lorem_ipsum": Rule(lambda text: text.text.lower().count("lorem ipsum"), "lorem ipsum, {:.0f} times", most=0),
    "c4.javascript": Rule(
        lambda text: text.text.lower().count("javascript"), "asks for JavaScript", most=0, usual=False
    ),
}


@dataclass(frozen=True)
class TextQuality(RowCheck):
    """Texts that break rules of thumb for text from the web (Gopher, C4): too short, repetitive, lists of symbols.

    column: of texts; None: the only one.
    rules:  which ones, by name, or "gopher" and "c4" for all of one paper's. None given: Gopher's but the one for English, and lorem ipsum.
    but:    rules that are left out of these.
    """

    name: ClassVar[str] = "check.text_quality"

    column: str | None = None
    rules: Sequence[str] = ()
    but: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rules", names_of(self.name, "rules", self.rules))
        object.__setattr__(self, "but", names_of(self.name, "but", self.but))
        for name in (*self.rules, *self.but):
            if name not in RULES and not any(rule.startswith(f"{name}.") for rule in RULES):
                raise BadInput(f"{self.name}: there is no rule {name!r}; there are: gopher, c4, {listed(RULES)}")

    @property
    def chosen(self) -> dict[str, Rule]:
        """The rules that are applied, by name."""

        def among(rule: str, names: Sequence[str]) -> bool:
            return rule in names or rule.partition(".")[0] in names

        wanted = {name: one for name, one in RULES.items() if (among(name, self.rules) if self.rules else one.usual)}
        return {name: one for name, one in wanted.items() if not among(name, self.but)}

    def libraries(self) -> dict[str, str]:
        """Unicode's version says what a letter is."""
        return versions()

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The texts."""
        return (text_column(schema, self.column, self.name),)

    def find(self, batch: pa.RecordBatch) -> Found:
        """A finding for each rule that a text breaks, in the order of RULES."""
        chosen = self.chosen
        rows, details, scores = [], [], []
        for row, value in enumerate(batch.column(0).to_pylist()):
            if not value or value.isspace():
                continue
            text = Text(value)
            for name, rule in chosen.items():
                measured = rule.measure(text)
                score = rule.broken(measured)
                if score is not None:
                    rows.append(row)
                    details.append(f"{name}: {rule.said.format(measured)}")
                    scores.append(score)
        return Found(findings_table(self.tag, batch.schema.names[0], rows, details, scores))
