"""The words the embedded model knows: concepts, their synonyms and the background colours.

Reading this module costs a small JSON file and no torch, so that checks can use it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent / "vocabulary.json"

_OTHER = """
the one two three some small big large little tiny cute happy sad funny old young new nice beautiful colorful
picture image drawing painting illustration icon sticker photograph render of in on with at near beside by to
and left right above below under over front behind standing sitting flying running eating holding riding wearing
next is are it its this that there background colour color orange white dark light bright style cartoon 3d
realistic simple shiny smiling sleeping many few pair single no not very his her their a an
"""

OTHER_WORDS = tuple(_OTHER.split())
"""Words a user may well write; the text tower has learnt to look past most of them."""


@dataclass(frozen=True)
class Concept:
    """One thing that the model draws.

    Attributes:
        name: The word captions use most, such as ``"hot dog"``.
        hexcode: The emoji's code points, lower case, as the sprite files are named.
        group: One of animal, person, vehicle, food, household, nature.
        synonyms: Other words for the same sprite.
        bare: True where no article is said ("broccoli", "scissors").
        other_forms: Irregular plurals and phrases that mean the same concept.
    """

    name: str
    hexcode: str
    group: str
    synonyms: tuple[str, ...] = ()
    bare: bool = False
    other_forms: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The name and its synonyms, the name first."""
        return (self.name, *self.synonyms)

    def phrase(self, word: str | None = None) -> str:
        """The word as it stands in a caption, with its article.

        Args:
            word: One of `words`; the name if None.

        Returns:
            For example ``"an owl"``, ``"a ewe"`` or ``"broccoli"``.
        """
        word = word or self.name
        return word if self.bare else f"{article(word)} {word}"


def article(word: str) -> str:
    """The indefinite article of a word of this vocabulary: ``"a"`` or ``"an"``."""
    sounds_open = word[0] in "aeio" or word.startswith("um")
    return "an" if sounds_open and not word.startswith("ew") else "a"


@cache
def _read() -> dict:
    return json.loads(_FILE.read_text(encoding="utf-8"))


@cache
def entries() -> tuple[Concept, ...]:
    """All concepts in the order of the judge's labels and of the sprite sheet."""
    return tuple(
        Concept(
            name=row["name"],
            hexcode=row["hexcode"],
            group=row["group"],
            synonyms=tuple(row.get("synonyms", ())),
            bare=row.get("bare", False),
            other_forms=tuple(row.get("other_forms", ())),
        )
        for row in _read()["concepts"]
    )


def concepts() -> list[str]:
    """The names of all concepts, in the order of the judge's labels."""
    return [entry.name for entry in entries()]


def colours() -> dict[str, tuple[int, int, int]]:
    """The named backgrounds and their mean RGB, 0 to 255."""
    return {name: tuple(rgb) for name, rgb in _read()["colours"].items()}


def _plurals(term: str) -> list[str]:
    """Regular plurals of a term; harmless where the true plural is another."""
    if term.endswith("y") and term[-2] not in "aeiou":
        return [term[:-1] + "ies"]
    if term.endswith(("s", "x", "ch", "sh")):
        return [term + "es"]
    return [term + "s"]


@cache
def _terms() -> dict[tuple[str, ...], str]:
    """Every form of every concept as a tuple of words, and the concept it means."""
    terms: dict[tuple[str, ...], str] = {}
    for entry in entries():
        for word in entry.words:
            for form in (word, *_plurals(word)):
                terms.setdefault(tuple(form.split()), entry.name)
        for form in entry.other_forms:
            terms.setdefault(tuple(form.split()), entry.name)
    return terms


def find_concepts(prompt: str) -> list[str]:
    """The concepts a prompt mentions, each once, in order of mention.

    The longest form wins, so "a hot dog" is not a dog, and "an orange background" is a colour.

    Args:
        prompt: Any text.

    Returns:
        Concept names; empty when the prompt mentions none.
    """
    words = re.findall(r"[a-z]+", prompt.lower())
    terms = _terms()
    longest = max(len(term) for term in terms)
    mentioned: list[str] = []
    place = 0
    while place < len(words):
        for length in range(min(longest, len(words) - place), 0, -1):
            name = terms.get(tuple(words[place : place + length]))
            after = words[place + length] if place + length < len(words) else ""
            if name is not None and not (name == "orange" and after == "background"):
                if name not in mentioned:
                    mentioned.append(name)
                place += length
                break
        else:
            place += 1
    return mentioned


def unknown_words(prompts: Iterable[str]) -> list[str]:
    """Words that the models never met in training, each once, in order of appearance.

    Args:
        prompts: Any texts.

    Returns:
        Words in lower case.
    """
    known = {word for term in _terms() for word in term} | {*colours(), *OTHER_WORDS, "photo", "emoji"}
    words = (word for prompt in prompts for word in re.findall(r"[a-z]+", prompt.lower()))
    return list(dict.fromkeys(word for word in words if word not in known))


def nearest(word: str, count: int = 3) -> list[str]:
    """Concepts whose spelling is close to a word, best first, for "did you mean".

    Args:
        word: A word that may be misspelt.
        count: The most concepts to return.

    Returns:
        Concept names, each once; empty when nothing is close.
    """
    spelled = {" ".join(term): name for term, name in _terms().items()}
    close = difflib.get_close_matches(word.lower().strip(), spelled, n=3 * count, cutoff=0.6)
    return list(dict.fromkeys(spelled[term] for term in close))[:count]
