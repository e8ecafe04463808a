"""Index cards: what the docstrings of published methods say, and the page that is made of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

import feynkac as fk
from feynkac.ppl.cards import Card, index, lines_of_code

DOCS = Path(__file__).parents[1] / "docs"
CARDS = [*fk.programs.index(), *fk.scaling.index(), *fk.tuning.index()]


def whole(x):
    """Do what is done. And more.

    Words.

    Source: A paper (2025), arXiv:2501.00001; another, arXiv:2412.12345
        with a second line.
    Guarantee: none.
    Engines: all.

    Not shown here: no model.

    >>> 1
    1
    """
    # a comment
    return x


def test_a_card_says_what_the_docstring_says():
    [card] = index(SimpleNamespace(__all__=["whole"], whole=whole), "here")
    assert card == Card(
        name="here.whole",
        line="Do what is done. And more",
        source="A paper (2025), arXiv:2501.00001; another, arXiv:2412.12345 with a second line",
        guarantee="none",
        engines="all",
        measured="not shown here: no model",
        lines=lines_of_code(whole),
    )
    assert card.arxiv == ("2501.00001", "2412.12345")


def test_a_promise_alone_is_refused():
    thing = SimpleNamespace(__doc__="Do it.\n\nGuarantee: all.")
    with pytest.raises(ValueError, match=r"here.thing does not say its engines, measured, source"):
        index(SimpleNamespace(__all__=["thing"], thing=thing), "here")


def test_names_with_a_source_have_a_card():
    named = {card.name for card in CARDS}
    for name in ("programs", "scaling", "tuning"):
        for entry in getattr(fk, name).__all__:
            if "Source: " in (getattr(getattr(fk, name), entry).__doc__ or ""):
                assert f"fk.{name}.{entry}" in named


def test_the_page_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("recipes_page", DOCS / "recipes.py")
    recipes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipes)
    text = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.page(text) == text, "run python docs/recipes.py"


@pytest.mark.parametrize("card", fk.programs.index(), ids=lambda card: card.name)
def test_programs_are_short(card):
    assert card.lines <= 75 or card.name in ("fk.programs.HGF", "fk.programs.archon")


def test_the_layers_of_archon_are_lines_of_archon():
    from feynkac.models.programs.agents import layers

    assert lines_of_code(fk.programs.archon) == 19 + lines_of_code(layers.generate) > 80
