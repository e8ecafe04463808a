"""The process in which a checker runs: reads inputs, writes results. Run as a script; imports nothing of feynkac.

It is given, pickled: the path for imports, the seconds for a call, and the function as bytes. Then each message is the
arguments of a call; the answer is ("ok", value), or ("error", traceback).
"""

from __future__ import annotations

import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection


def main() -> None:
    """Serve calls until the other end is closed."""
    link = Connection(int(sys.argv[1]))
    try:
        sys.path[:], seconds, function = link.recv()
        fn = pickle.loads(function)
    except Exception:
        link.send(("error", traceback.format_exc()))
        return
    link.send(("ok", None))
    while True:
        try:
            args = pickle.loads(link.recv_bytes())
        except EOFError:
            return
        except Exception:
            link.send(("error", traceback.format_exc()))
            continue
        # The pool keeps the time; this ends a call whose pool was killed.
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
        answer = _call(fn, args)
        signal.setitimer(signal.ITIMER_REAL, 0)
        link.send(answer)


def _call(fn: object, args: tuple[object, ...]) -> tuple[str, object]:
    try:
        value = fn(*args)  # type: ignore[operator]
        # NumPy's booleans and numbers too, which are not worth importing NumPy for at the other end.
        return "ok", value if isinstance(value, bool) else float(value)
    except Exception:
        return "error", traceback.format_exc()


if __name__ == "__main__":
    main()
