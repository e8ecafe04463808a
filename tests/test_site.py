"""The pages that are made from code: the layout, the reference, the list of public names."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def script(name):
    """Import a script of docs."""
    found = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    import sys

    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def test_the_layout_is_what_the_readmes_say():
    layout = script("layout")
    text = layout.PAGE.read_text(encoding="utf-8")
    assert layout.page(text) == text, "run: python docs/layout.py"


def test_public_names_are_those_on_the_list():
    """Whoever changes what users rely on sees it in the diff of ``docs/api.txt``."""
    for library in ("torch", "transformers", "jax", "llguidance", "matplotlib"):
        pytest.importorskip(library)
    listed = (DOCS / "api.txt").read_text(encoding="utf-8").splitlines()
    found = script("reference").listed().splitlines()
    assert {"new": sorted(set(found) - set(listed)), "gone": sorted(set(listed) - set(found))} == {
        "new": [],
        "gone": [],
    }, "if it is meant, run: python docs/reference.py"


def test_every_public_name_says_what_it_is():
    pytest.importorskip("torch")
    reference = script("reference")
    silent = []
    for path in reference.NAMESPACES:
        for name in reference.public(path):
            if name.kind == "data":
                continue
            if not inspect.getdoc(name.thing):
                silent.append(name.path)
            elif name.kind == "class":
                silent += [
                    f"{name.path}.{member}"
                    for member, thing in vars(name.thing).items()
                    if not member.startswith("_")
                    and (inspect.isfunction(thing) or isinstance(thing, property))
                    and not inspect.getdoc(getattr(name.thing, member))
                ]
    assert not silent


def test_pages_link_to_what_is_there():
    missing = []
    for page in [*DOCS.glob("*.md"), *DOCS.glob("claims/*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#|<)([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing


def test_every_engine_says_what_it_costs_and_when_it_pays():
    reference = script("reference")
    engines = [name for name in reference.public("feynkac") if reference.room(name)]
    assert len(engines) > 30
    for name in engines:
        told = inspect.getdoc(name.thing)
        assert all(f"\n{word}: " in told for word in ("Cost", "When it pays", "Source")), name.path
