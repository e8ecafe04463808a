"""How the site is built: ``make docs``. Pages are written here, the reference and the engines' pages by `reference`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402
from docutils import nodes  # noqa: E402

import feynkac  # noqa: E402

project = "feynkac"
author = "the feynkac developers"
copyright = f"2026, {author}"
version = release = feynkac.__version__

extensions = [
    "docstrings",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "out", "README.md"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Names in single backticks link where they are known, and are code where not.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_typehints_format = "short"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# FEYNKAC_DOCS_EXECUTE=off builds without running the notebooks, =force runs them all anew.
nb_execution_mode = os.environ.get("FEYNKAC_DOCS_EXECUTE", "cache")
nb_execution_timeout = 3600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # bars of progress, and what libraries say of themselves

html_theme = "pydata_sphinx_theme"
html_title = "feynkac"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "secondary_sidebar_items": ["page-toc"],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def copied(folder: str) -> None:
    """Copy what lies beside this folder into it, as Sphinx reads one folder alone."""
    target = HERE / folder
    target.mkdir(exist_ok=True)
    for path in sorted((HERE.parent / folder).glob("*.ipynb")):
        found = target / path.name
        text = path.read_text(encoding="utf-8").replace("(../docs/", "(../")
        if not found.exists() or found.read_text(encoding="utf-8") != text:
            found.write_text(text, encoding="utf-8")


PAPER = re.compile(r"(arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,}/(?!\S*<)[^\s;,]*[^\s;,.)\]])")


def finished(app: Any, doctree: nodes.document) -> None:
    """Link papers that are named by number, and drop the empty lines that end examples."""
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "pycon":
            block.children = [nodes.Text(block.astext().rstrip("\n"))]
            block.rawsource = block.astext()
    kept = (nodes.FixedTextElement, nodes.literal, nodes.raw, nodes.reference, nodes.title)
    for text in list(doctree.findall(nodes.Text)):
        parts = PAPER.split(text)
        above = text.parent
        while above is not None and not isinstance(above, kept):
            above = above.parent
        if len(parts) > 1 and above is None:
            linked: list[nodes.Node] = []
            for i, part in enumerate(parts):
                kind, _, number = part.partition(":")
                site = "https://arxiv.org/abs/" if kind == "arXiv" else "https://doi.org/"
                linked.append(nodes.reference("", part, refuri=site + number) if i % 2 else nodes.Text(part))
            text.parent.replace(text, linked)


def stacked(app: Any, doctree: nodes.document) -> None:
    """Give each cell of wide tables of words the name of its column, which narrow screens show above it."""
    for table in doctree.findall(nodes.table):
        rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
        words = [len(entry.astext()) for row in rows[1:] for entry in row]
        if not rows or len(rows[0]) < 4 or not words or sum(words) < 20 * len(words):
            continue
        table["classes"].append("stacked")
        for row in rows[1:]:
            for entry, column in zip(row, rows[0]):
                if entry.children and isinstance(entry.children[0], nodes.paragraph):
                    entry.children[0].insert(0, nodes.inline("", f"{column.astext()}: ", classes=["column"]))


def setup(app: Any) -> None:
    """Have `finished` and `stacked` see every page."""
    app.connect("doctree-read", finished)
    app.connect("doctree-read", stacked)


copied("notebooks")
reference.write(HERE / "reference")
