"""Write the table of the layout in CONTRIBUTING.md from the READMEs of the folders.

python docs/layout.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- layout: from the READMEs of the folders -->", "<!-- end of layout -->"
TOPS = ("ppl", "inference", "models", "diffusion", "tests", "notebooks", "benchmarks", "training", "docs")


def folders() -> Iterator[Path]:
    """Yield the folders with a README: packages with their rooms, and what lies beside them."""
    for top in TOPS:
        found = sorted({ROOT / top} | {path.parent for path in (ROOT / top).rglob("__init__.py")})
        yield from (folder for folder in found if not {"_build", "reference"} & set(folder.parts))


def table() -> str:
    """Return the table. Raises FileNotFoundError for a package without a README."""
    rows = ["| folder | holds | rules | begin with |", "|---|---|---|---|"]
    rows.append("| `__init__.py` | the public names, nothing else | | |")
    for folder in folders():
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
        title, holds, rules, begin = (line for line in lines if line)
        assert title == f"# {folder.relative_to(ROOT).as_posix()}", folder
        told = rules.removeprefix("- ").rstrip("."), begin.removeprefix("- Begin with ").rstrip(".")
        rows.append(f"| `{title.removeprefix('# ')}/` | {holds} | {told[0]} | {told[1]} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """Return CONTRIBUTING with the table as the READMEs say it."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
