"""Settings and fixtures that tests share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# Tests run beside each other on few cores; threads of torch would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Spare the quick tests most of what XLA optimises, a third of the time of those that compile."""
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name parameters by their type where their repr holds an address, which differs from process to process."""
    return type(val).__name__ if " at 0x" in repr(val) else None


_modules_known = 0


def pytest_runtest_setup() -> None:
    """Spare collections the libraries, over which each would take a second: they look at what tests make alone."""
    global _modules_known
    if len(sys.modules) > _modules_known + 200:
        gc.collect()
        gc.freeze()
        _modules_known = len(sys.modules)


@pytest.fixture
def no_keys(monkeypatch):
    """Take the keys of servers out of the environment."""
    for name in ("FEYNKAC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Put the training scripts on the path, with checkpoints in a folder of their own."""
    scripts = Path(__file__).resolve().parent.parent / "training"
    names = {path.stem for path in scripts.glob("*.py")}
    monkeypatch.syspath_prepend(str(scripts))
    monkeypatch.setenv("FEYNKAC_TRAINING", str(tmp_path / "checkpoints"))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)
