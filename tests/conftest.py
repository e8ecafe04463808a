"""Settings that all tests share."""

from __future__ import annotations

import os

# Tests run beside each other on few cores; threads of torch would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
