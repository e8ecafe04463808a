"""The demonstration's checks and the rules of its problems: exactly, without a model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.testing import ScriptedLM
from laws import Z_LIMIT, z_score

SCRIPT = Path(__file__).parents[1] / "notebooks" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = sys.modules["demo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


HOLDS = "The Dog ran by the river."
SENTENCES = {
    HOLDS: True,
    f"  {HOLDS}\n": True,
    "The dog ran by the river": False,  # not ended
    "The dogs ran by the river.": False,  # another word
    "The dog ran. By the river it sat.": False,  # two sentences
    "The dog ran\nby the river today.": False,  # two lines
    "Dog, river, and so on.": False,  # a list, too short
    'The "dog" ran by the river.': False,  # quoted
    "The dog ran by the wide road.": False,  # a word is missing
    "": False,
}
VERSES = {
    "I met a dog,\nand saw the river.": True,
    "I met a Dog!\nand saw the RIVER": True,
    "I met a dog,\nand saw the river.\n": True,
    "I saw the river,\nand met a dog.": False,  # the other way round
    "I met a dog and saw the river.": False,  # one line
    "I met a dog,\nand saw the river,\nat night.": False,  # three
    "I met a dog,\n\nand saw the river.": False,  # an empty line is a line
    "I met a dog's\nfriend at the river.": False,
    "dog\nriver": False,  # too short
    "": False,
}


@pytest.mark.parametrize(("text", "right"), SENTENCES.items())
def test_a_sentence_passes_where_it_is_one_and_holds_the_words(demo, text, right):
    assert demo.passes(demo.Task("words", ("dog", "river")), text) is right


@pytest.mark.parametrize(("text", "right"), VERSES.items())
def test_a_verse_passes_where_its_lines_end_with_the_words_in_order(demo, text, right):
    assert demo.passes(demo.Task("endings", ("dog", "river")), text) is right


@pytest.mark.parametrize(("letter", "right"), [("q", True), ("e", False), ("d", False), ("t", False)])
def test_a_letter_is_nowhere_small_or_large(demo, letter, right):
    assert demo.passes(demo.Task("letter", ("river",), letter), HOLDS) is right


def test_what_is_asked_for_in_words_grows_with_them(demo):
    task = demo.Task("words", ("dog", "river", "sun", "fox"))
    assert not demo.passes(task, "The dog, river, sun and fox sang.")  # seven words, not eight
    assert demo.passes(task, "The dog, river, sun and fox all sang.")
    assert not demo.passes(task, None)


def test_a_text_that_passes_was_allowed_all_the_way(demo):
    """So that a particle is killed for nothing that could still have passed."""
    task = demo.Task("letter", ("river",), "q")
    assert all(demo.allowed(task, HOLDS[:end]) for end in range(len(HOLDS)))
    assert not demo.allowed(task, "The q")
    assert not demo.allowed(task, 'The "')
    assert not any(demo.ends(HOLDS[:end]) for end in range(len(HOLDS) - 1))


def test_problems_are_drawn_by_rule(demo):
    for family, size in demo.SIZES.items():
        mine, other, tuning = (demo.problems(family, *which) for which in ((0,), (1,), (0, 12, True)))
        assert mine == demo.problems(family, 0)
        assert mine[:3] == demo.problems(family, 0, 3)
        assert mine != other
        assert all(len(set(task.words)) == size for task in mine)
        assert not {w for task in mine for w in task.words} & {w for task in tuning for w in task.words}
        for task in mine:
            assert all(word in task.request for word in task.words)
            assert bool(task.letter) == (family == "letter")
            assert not task.letter or task.letter not in task.words[0]


def script(before: str):
    if before.endswith("dog\n"):
        return {"We saw the river": 0.5, "We saw the sea": 0.5}
    if "poem" in before:
        return {"I met a dog\n": 0.6, "I saw a cat\n": 0.4}
    return {
        "The dog sat in the wood now.": 0.25,
        "The dog met a lynx in there.": 0.35,
        "The cat sat in the wood now.": 0.4,
    }


def test_the_programs_weigh_by_the_check_alone(demo):
    """Their evidence is the probability that a text passes; guides and early deaths change nothing."""
    lm, runs, engine = ScriptedLM(script), 60, fk.SMC(4, all_dead="zero")
    for model, truth in (
        (demo.sentence(lm, demo.Task("letter", ("dog",), "x")), 0.25),
        (demo.verse(lm, demo.Task("endings", ("dog", "river"))), 0.6 * 0.5),
    ):
        found = np.exp([posterior.log_evidence for posterior in fk.infer([model] * runs, engine, seed=0)])
        # 2 comparisons at |z| < 4.26: a correct program fails this test with probability 2 × 2.0e-5 = 4e-5.
        assert abs(z_score(found, truth)) < Z_LIMIT
