"""Texts of at least and at most so many tokens or lines, whose end is forced at its own probability."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, Literal, cast, get_args

import numpy as np

from ...ppl.sites import short
from ...ppl.values.reals import whole_number
from ..language.host import Host
from ..language.texts.text import Text
from .constraint import Bools, Constraint
from .laws import Context
from .steps import Constrained, constrained
from .vocabulary import Vocabulary

Unit = Literal["tokens", "lines"]


class Length(Constraint):
    """The constraint that a response ends within certain lengths.

    Below ``at_least`` the end is forbidden, and at ``at_most`` only the end may follow. A constrained step multiplies
    in the probability of what is left: of all tokens but the end there, and of the end here. So the target is p of
    whole texts of such lengths. (A text that is cut at the limit and counted as whole has another law: that of
    beginnings.)

    Args:
        lm: the language model whose tokens are meant.
        at_least: fewest tokens or lines of a response.
        at_most: most of them; None is any number.
        of: "tokens", the end not counted; or "lines", as they read: a line that has begun counts, and no line begins at
            the end of the one before.

    Raises ValueError where no length is left, and for other units, TypeError for a number that is none, and Unsupported
    for lines of a tokenizer that does not read as bytes.

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> short = Length(lm, at_least=1, at_most=2)
    >>> [bool(short.allowed(context)[-1]) for context in [(), (40,), (40, 41)]]
    [False, True, True]
    >>> bool(short.allowed((40, 41))[:-1].any())
    False
    """

    def __init__(self, lm: Host, at_least: int = 0, at_most: int | None = None, *, of: Unit = "tokens") -> None:
        if of not in get_args(Unit):
            raise ValueError(f'a length is of "tokens" or "lines", not of {of!r}')
        whole_number("at_least", at_least, 0)
        if at_most is not None:
            whole_number("at_most", at_most, 0)
            if at_most < at_least:
                raise ValueError(f"no text has at least {at_least} and at most {at_most} {of}")
        self.lm, self.of = lm, of
        self.at_least, self.at_most = at_least, math.inf if at_most is None else at_most
        self.vocabulary = Vocabulary.of(lm)
        size = self.vocabulary.size
        self._going = np.ones(size, bool)
        self._going[[end for end in lm.eos if end < size]] = False
        if of == "lines":
            spelled = lm.token_bytes[:size]
            self._breaks = np.array([token.count(b"\n") for token in spelled])
            self._opens = np.array([-1 if not token else not token.endswith(b"\n") for token in spelled])

    def __repr__(self) -> str:
        return f"<{self.at_least} to {'any number' if self.at_most == math.inf else self.at_most} {self.of}>"

    @property
    def fingerprint(self) -> Hashable:
        """The lengths, the tokens and the ends."""
        return ("length", self.of, self.at_least, self.at_most, self.vocabulary, self.lm.eos)

    def viable(self, context: Context) -> bool:
        """Whether a sequence may go on, or end."""
        return self.lm.eos.isdisjoint(context) and self._length(context)[0] <= self.at_most

    def accepts(self, context: Context) -> bool:
        """Whether a sequence may end here."""
        return self.lm.eos.isdisjoint(context) and self.at_least <= self._length(context)[0] <= self.at_most

    def allowed(self, context: Context) -> Bools:
        """Return what may follow, (V+1,): each token, and last the end."""
        if not self.viable(context):
            return np.zeros(self.vocabulary.size + 1, bool)
        length, open_line = self._length(context)
        after: Any = length + 1
        if self.of == "lines":
            after = length - open_line + self._breaks + np.where(self._opens < 0, open_line, self._opens)
        return np.append(self._going & (after <= self.at_most), length >= self.at_least)

    def _length(self, context: Context) -> tuple[int, int]:
        """Return the length of a response, and whether its last line is open, 0 or 1."""
        if self.of == "tokens" or not context:
            return len(context), 0
        tokens = np.array(context)
        opens = self._opens[tokens]
        shown = opens[opens >= 0]
        open_line = int(shown[-1]) if len(shown) else 0
        return int(self._breaks[tokens].sum()) + open_line, open_line


def forced_end(text: Text, **sampling: Any) -> Constrained:
    """Return the kernel of a text's end: it ends here, at the probability of that, which is its weight.

    It comes after what writes a text up to a limit, whatever the limit is of: tokens, lines, steps of the program. A
    text that has ended stays as it is, with weight one. What comes out has then the law p of whole texts within the
    limit; without it, p of beginnings is taken for that of wholes. A text that fills the context of its model cannot
    end, and dies.

    Args:
        text: that which ends.
        sampling: keywords of `Sampling`: those that the text was drawn with.

    Raises TypeError for what is no text, ValueError for one without a language model, and Unsupported for a model that
    gives no law of the next token.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> @fk.program
    ... async def brief(lm):
    ...     text = await fk.sample("text", lm.complete(lm.prompt("Once"), max_tokens=3))
    ...     return await fk.sample("end", forced_end(text))
    >>> posterior = fk.infer(brief(tiny_lm()), fk.SMC(8), seed=0)
    >>> all(text.finished for text in posterior.values), posterior.log_evidence < -1
    (True, True)
    """
    if not isinstance(text, Text):
        raise TypeError(f"what ends is a text, such as lm.prompt('Once'), not {short(text, 80)}")
    if text.lm is None:
        raise ValueError("this text has no language model: use lm.attach(text)")
    lm = cast("Host", text.lm)
    step: Any = lm.complete(text, max_tokens=1, **sampling)
    return constrained(step, Length(lm, at_most=0).after(text))
