"""The tokenizer of a model that is elsewhere, and the tokens that end its texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ...ppl.errors import FeynkacError
from ...ppl.lazy import needing


def find_tokenizer(given: Any, names: Sequence[str | None], who: str) -> tuple[Any, list[int] | None]:
    """Return a tokenizer, and the end tokens of the model's generation_config where that is beside it.

    Args:
        given: a tokenizer of transformers, or the name or folder that one is loaded from; None for that of the model.
        names: what the model is called, or was loaded from.
        who: the server, for messages.

    Raises FeynkacError where none is found.
    """
    if given is not None and not isinstance(given, str | os.PathLike):
        return given, None
    with needing("the tokenizer of a model behind a server", "server"):
        from transformers import AutoTokenizer
    tried = [os.fspath(given)] if given is not None else [name for name in dict.fromkeys(names) if name]
    errors = []
    for name in tried:
        try:
            return AutoTokenizer.from_pretrained(name), _ends(name)
        except (OSError, ValueError) as error:
            errors.append(error)
    raise FeynkacError(
        f"no tokenizer is found for {who}, by {' or '.join(map(repr, tried))}: give tokenizer=, a folder, a name on "
        "the hub or a tokenizer of transformers; it must be the model's own"
    ) from (errors[-1] if errors else None)


def _ends(name: str) -> list[int] | None:
    """Return the end tokens that a model's generation_config names, where there is one."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError):
        return None
    return None if ends is None else [ends] if isinstance(ends, int) else list(ends)
