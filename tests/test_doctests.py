"""Every example in every docstring of the library, imported by its own name, and in the pages of its documentation."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import feynkac

ROOT = Path(feynkac.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
MODULES = ["feynkac"] + [
    module.name
    for package in ("ppl", "inference", "models", "diffusion")
    for module in pkgutil.walk_packages([str(ROOT / package)], f"feynkac.{package}.")
    if not module.name.endswith(".__main__")
]


def load(name):
    """Import a module; skip it where a library that it needs is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "feynkac":
            raise
        pytest.skip(f"{name} needs {error.name}")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(load(name)).failed == 0


LONG = ("surrogates", "variational")
"""Pages that compile much."""
PAGES = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else [])
    for page in sorted(DOCS.glob("*.md"))
]


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_pages(page):
    pytest.importorskip("transformers")
    assert doctest.testfile(str(page), module_relative=False, encoding="utf-8").failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    named = (
        importlib.import_module(f"feynkac.ppl.{module}") for module in ("distributions.dist", "keys", "exact.oracles")
    )
    assert sum(len(test.examples) for module in named for test in finder.find(module)) > 10
