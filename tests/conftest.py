"""Settings that all tests share."""

from __future__ import annotations

import os

# Tests run beside each other on few cores; threads of torch would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name parameters by their type where their repr holds an address, which differs from process to process."""
    return type(val).__name__ if " at 0x" in repr(val) else None
