"""Engines (one algorithm, one file), the `infer` that runs them, and the posterior that they leave.

Engines see a model through the contract of `ppl.model` alone.
"""

from typing import Any

from ..ppl.running.nesting import provide


def _nested(*wave: Any) -> list[Any]:
    """Serve `fk.nested` by what is imported when a program first asks for it, whoever runs it."""
    from .nested import run_nested

    return run_nested(*wave)


provide(_nested)
