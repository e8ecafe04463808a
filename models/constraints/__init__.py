"""Constrained generation with exact weights: grammars, lengths, predicates, ensembles of language models.

A *potential* weighs token sequences along the way (`Potential`). `constrained` multiplies the law of a step by one,
`targeting` takes one as the whole law; both draw from the locally normalised law and hand the engine what that
leaves out, so that the target is the product over whole texts:

    schema = fk.constraints.json_schema(lm, {...})
    text = await fk.sample("answer", fk.constraints.constrained(lm.complete(text), schema))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ppl.lazy import find

if TYPE_CHECKING:
    from .algebra import guide, mixture, power_mean
    from .awrs import AWRS
    from .byte_law import ByteLM
    from .byte_texts import Bytes, coerced
    from .constraint import Constraint, Where
    from .grammar import Grammar, json_schema, lark, regex
    from .language import Language, Rewarded
    from .laws import END
    from .length import Length, forced_end
    from .potential import Potential
    from .steps import Constrained, constrained, targeting
    from .vocabulary import Vocabulary

_HOME = {
    "AWRS": "awrs",
    "ByteLM": "byte_law",
    "Bytes": "byte_texts",
    "END": "laws",
    "Constrained": "steps",
    "Constraint": "constraint",
    "Grammar": "grammar",
    "Language": "language",
    "Length": "length",
    "Potential": "potential",
    "Rewarded": "language",
    "Vocabulary": "vocabulary",
    "Where": "constraint",
    "coerced": "byte_texts",
    "constrained": "steps",
    "forced_end": "length",
    "guide": "algebra",
    "json_schema": "grammar",
    "lark": "grammar",
    "mixture": "algebra",
    "power_mean": "algebra",
    "regex": "grammar",
    "targeting": "steps",
}

__all__ = [
    "AWRS",
    "END",
    "ByteLM",
    "Bytes",
    "Constrained",
    "Constraint",
    "Grammar",
    "Language",
    "Length",
    "Potential",
    "Rewarded",
    "Vocabulary",
    "Where",
    "coerced",
    "constrained",
    "forced_end",
    "guide",
    "json_schema",
    "lark",
    "mixture",
    "power_mean",
    "regex",
    "targeting",
]


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)
