"""The words of the embedded world: what pipelines say must be found in them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from draft_emoji.plugin import outside
from draft_emoji.vocabulary import article, colours, concepts, entries, find_concepts, nearest, unknown_words

PROMPTS = Path(__file__).parents[2] / "pipelines" / "prompts"

# Of the paper's 45 animals and its held-out ones, those the emoji set has; it has no cheetah.
ANIMALS = set(
    """cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle
    ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey fly
    llama camel bat gorilla hedgehog kangaroo snail hippopotamus crocodile lobster octopus""".split()  # noqa: SIM905
)


def test_it_has_the_papers_animals_and_between_120_and_400_concepts() -> None:
    assert set(concepts()) >= ANIMALS
    assert 120 <= len(concepts()) <= 400
    assert len(set(concepts())) == len(concepts())


def test_it_has_people_vehicles_food_and_household() -> None:
    assert {"person", "man", "woman", "pizza", "book", "chair", "umbrella"} <= set(concepts())
    assert {"animal", "person", "vehicle", "food", "household", "nature"} == {entry.group for entry in entries()}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat and a pizza on a blue background", ["cat", "pizza"]),
        ("two ewes", ["sheep"]),
        ("a honeybee next to a hot dog", ["bee", "hot dog"]),
        ("A DOG!", ["dog"]),
        ("nothing of the kind", []),
    ],
)
def test_prompts_are_read_with_synonyms_plurals_and_longer_words_first(prompt: str, found: list[str]) -> None:
    assert find_concepts(prompt) == found


def test_every_word_of_every_concept_is_found_as_that_concept() -> None:
    for entry in entries():
        for word in entry.words:
            assert find_concepts(f"{entry.phrase(word)} on a white background") == [entry.name]


def test_a_misspelt_word_has_near_ones() -> None:
    assert "giraffe" in nearest("girafe")
    assert nearest("qqqqqq") == []


@pytest.mark.parametrize(
    ("word", "expected"), [("owl", "an"), ("ewe", "a"), ("elephant", "an"), ("cat", "a"), ("umbrella", "an")]
)
def test_articles_are_right(word: str, expected: str) -> None:
    assert article(word) == expected


def test_training_and_held_out_prompts_share_no_concept_and_name_the_one_they_say() -> None:
    columns = {}
    for name in ("train", "heldout"):
        rows = list(csv.DictReader((PROMPTS / f"emoji_{name}.csv").open()))
        assert all(find_concepts(row["prompt"]) == [row["concept"]] for row in rows)
        assert all(any(colour in row["prompt"] for colour in colours()) for row in rows)
        columns[name] = {row["concept"] for row in rows}
    assert not columns["train"] & columns["heldout"]
    assert columns["train"] | columns["heldout"] == set(concepts())


def test_words_that_no_training_met_are_named_with_the_nearest_known_ones() -> None:
    assert unknown_words(["a photo of two cats on a blue background", "a happy ewe near a pizza"]) == []
    assert unknown_words(["A zebr and a quokka", "a quokka"]) == ["zebr", "quokka"]
    said = outside(["a zebr and a quokka"])
    assert "'zebr' (nearest: zebra" in said
    assert "'quokka'" in said
    assert outside(["a cat"]) == ""
