"""To test programs with: a tiny random language model, made offline in a moment, and a server that goes wrong at will.

tiny_lm         a random Llama with a tokenizer of 300 tokens
tiny_tokenizer  that tokenizer
ScriptedLM      a language model that says what a function says, so that all can be counted up
FakeServer      a language model and rewards behind HTTP, with vLLM's conventions
Faults          what goes wrong there
Bigram          its law, unless another is given: so small that all that it can say can be counted up
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ppl.lazy import find

if TYPE_CHECKING:
    from .bigram import Bigram
    from .fake_server import FakeServer
    from .faults import Faults
    from .scripted_lm import ScriptedLM
    from .tiny import BOS, EOS, USER, tiny_lm, tiny_tokenizer

_HOME = {
    "BOS": "tiny",
    "Bigram": "bigram",
    "EOS": "tiny",
    "FakeServer": "fake_server",
    "Faults": "faults",
    "ScriptedLM": "scripted_lm",
    "USER": "tiny",
    "tiny_lm": "tiny",
    "tiny_tokenizer": "tiny",
}

__all__ = ["BOS", "EOS", "USER", "Bigram", "FakeServer", "Faults", "ScriptedLM", "tiny_lm", "tiny_tokenizer"]


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)
