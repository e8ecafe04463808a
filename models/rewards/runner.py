"""Runs a piece of Python under limits, in a process of its own. Run as a script; imports nothing of feynkac.

The arguments are two file descriptors. The second holds, as JSON, the code, the tests, and the bytes of memory and of
output; standard input is theirs. How it went is written as JSON to the first; nothing is written where the process
ends before its tests do.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import resource
import sys


def main() -> None:
    """Run the code, then the tests, in one namespace."""
    own, result, given = os.getpid(), int(sys.argv[1]), int(sys.argv[2])
    with open(given) as file:
        job = json.load(file)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output"], job["output"]))
    if sys.platform == "linux":  # elsewhere it is not heeded, or refused
        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    sys.argv = ["candidate.py"]
    reason = _run(job["code"], job["tests"]) or _flush()
    if os.getpid() == own:  # else it is a fork that the code made
        os.write(result, json.dumps(reason).encode())


def _run(code: str, tests: str) -> str:
    """Return why the code failed, or an empty string."""
    space = {"__name__": "__main__", "__builtins__": builtins}
    try:
        exec(compile(code, "<code>", "exec"), space)
        exec(compile(tests, "<tests>", "exec"), space)
    except MemoryError:
        return "memory"
    except SystemExit as error:
        return f"it ended itself: SystemExit({error.code!r})"
    except BaseException as error:
        return _shown(error)
    return ""


def _flush() -> str:
    """Write out what is left, and return why that fails, or an empty string."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _shown(error)
    except (AttributeError, ValueError):  # the code has closed or replaced it
        pass
    return ""


def _shown(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "output"
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    main()
