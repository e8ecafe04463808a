"""Rewards as lazy, batched, typed scores.

Calling a reward computes nothing: it returns a `Score`, which is evaluated when a program awaits it in
``factor``, ``twist`` or ``call``, together with those of all other particles and one call per reward. A score
knows what kind of number it is, so that nobody has to guess whether 0.9 is a probability or a log-weight:

    probability   .log() or .logit() makes a log-weight
    real          / beta makes the log-weight r / β
    log_weight    goes into a factor as it is; may be added, scaled and tempered
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NoReturn, Protocol, overload

from .cost import charge, rows
from .errors import AmbiguousScore, InvalidWeight, NotRecorded
from .memory import Memory
from .sites import Running, short
from .values.pictures import lasting
from .values.reals import ordered, real
from .values.recording import current, form_of, served

_ROUNDING = 1e-6  # of a float32 softmax, say
Kind = Literal["probability", "real", "log_weight"]


class Scorer(Protocol):
    """What a `Score` is computed by: a named batch function with a kind and a memory of past results."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def kind(self) -> Kind:
        """What its numbers are."""

    @property
    def memory(self) -> Memory[float]:
        """Results already known, by input."""

    def version(self) -> Hashable:
        """Return what tells the state of a model that it holds from other states: results of one are not of another."""

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> Sequence[float]:
        """Return one number for each tuple of arguments."""


class Score:
    """A number to be: a function of the results of one or more rewards. Immutable.

    Raises `AmbiguousScore` where an operation does not fit the kind.
    """

    __slots__ = ("_combine", "kind", "leaves")

    def __init__(
        self,
        leaves: tuple[tuple[Scorer, tuple[Any, ...]], ...],
        kind: Kind,
        combine: Callable[[Sequence[float]], float] = lambda values: values[0],
    ) -> None:
        self.leaves = leaves
        self.kind: Kind = kind
        self._combine = combine

    def __repr__(self) -> str:
        return f"<{self.kind} score of {' and '.join(scorer.name for scorer, _ in self.leaves)}>"

    def map(self, fn: Callable[[float], float], kind: Kind) -> Score:
        """Apply a function to the number; the result is of the given kind."""
        inner = self._combine
        return Score(self.leaves, kind, lambda values: fn(inner(values)))

    def log(self) -> Score:
        """Return log p of a probability, as a log-weight; −inf where p = 0."""
        self._need("probability", "log()")
        return self.map(lambda p: math.log(p) if p > 0 else -math.inf, "log_weight")

    def logit(self, clip: float = 1e-7) -> Score:
        """Return log p/(1−p) of a probability clipped to [clip, 1−clip], as a log-weight."""
        self._need("probability", "logit()")
        if not 0.0 < clip < 0.5:
            raise InvalidWeight(f"clip must be in (0, 0.5), not {clip}")

        def odds(p: float) -> float:
            p = min(max(p, clip), 1.0 - clip)
            return math.log(p) - math.log1p(-p)

        return self.map(odds, "log_weight")

    def __truediv__(self, beta: float) -> Score:
        """Divide by a temperature: a real reward r becomes the log-weight r/β; a log-weight is tempered."""
        if self.kind == "probability":
            raise AmbiguousScore(f"{self!r} / beta: write .log() / beta or .logit() / beta")
        scale = _number(beta, self, nan=True)
        if not scale > 0:
            raise InvalidWeight(f"the temperature beta must be positive, not {beta}")
        return self.map(lambda value: value / scale, "log_weight")

    def __mul__(self, factor: float) -> Score:
        """Scale a log-weight or a real reward."""
        if self.kind == "probability":
            raise AmbiguousScore(f"{self!r} * number: write .log() * number, which is p to that power")
        scale = _number(factor, self)
        return self.map(lambda value: 0.0 if scale == 0 else value * scale, self.kind)

    __rmul__ = __mul__

    def __neg__(self) -> Score:
        return self * -1.0

    def __add__(self, other: Score | float) -> Score:
        """Add two scores of one kind, or a number to one: a product of weights."""
        if self.kind == "probability":
            raise AmbiguousScore(f"{self!r} + …: probabilities are multiplied; write .log() + ….log()")
        if not isinstance(other, Score):
            addend = _number(other, self)
            return self.map(lambda value: value + addend, self.kind)
        if other.kind != self.kind:
            raise AmbiguousScore(f"cannot add {self!r} to {other!r}: make both log-weights first")
        first, second, cut = self._combine, other._combine, len(self.leaves)
        return Score(self.leaves + other.leaves, self.kind, lambda values: first(values[:cut]) + second(values[cut:]))

    __radd__ = __add__

    def __sub__(self, other: Score | float) -> Score:
        return self + -other

    def __rsub__(self, other: float) -> Score:
        return -self + other

    def _refuse(self, *_: Any) -> NoReturn:
        raise AmbiguousScore(
            f"{self!r} has no value yet: await fk.call(name, score) gives its number; elsewhere, score.evaluate()"
        )

    __float__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse

    def _need(self, kind: Kind, what: str) -> None:
        if self.kind != kind:
            raise AmbiguousScore(
                f"{what} is for a {kind}, but {self!r} is a {self.kind}"
                + (": use / beta to make it a log-weight" if self.kind == "real" else ": use it as it is")
            )

    def evaluate(self) -> float:
        """Return the number now, where no program awaits it: in a notebook, say.

        Many at once, in one call for each reward: `feynkac.ppl.score.evaluate`. It is charged to the run in progress;
        outside one, to the ledger of ``feynkac.ppl.cost.recording``. (`Reads <feynkac.LanguageModel.read>` need nothing
        of the kind: outside a program they are values.)

        Raises TypeError inside a program, where ``await fk.call(name, score)`` gives the number, in one call for all
        particles; ScoreError as `evaluate` does.

        >>> from feynkac.ppl.cost import Ledger, recording
        >>> @reward(kind="probability")
        ... def short(text):
        ...     return 1.0 / (1 + len(text))
        >>> with recording(Ledger()) as ledger:
        ...     number = short("abc").log().evaluate()
        >>> round(number, 4), ledger.total().reward_calls
        (-1.3863, 1)
        """
        if Running.fiber is not None:
            raise TypeError(f"{self!r}: inside a program, await fk.call(name, score) gives its number")
        (number,) = evaluate([self])
        return number

    def value(self, results: Sequence[float]) -> float:
        """Return the number, given the results of the leaves in order."""
        return self._combine(results)


class ScoreError(InvalidWeight):
    """A reward returned something that is not a usable number; ``index`` says for which of the scores."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def evaluate(scores: Sequence[Score]) -> list[float]:
    """Evaluate scores together: one call per reward, each distinct input once.

    Raises `ScoreError` (with the index of the score) where a reward returns NaN, +inf, a probability outside
    [0, 1], or what is no real number (a bool is one as a probability or a real reward, not as a log-weight).
    ``evaluate([a, b])`` is what ``factor`` does for all particles at once; it serves in tests of a reward.
    """
    results: list[list[float]] = [[0.0] * len(score.leaves) for score in scores]
    wanted: dict[int, tuple[Scorer, OrderedDict[Hashable, tuple[tuple[Any, ...], list[tuple[int, int]]]]]] = {}
    for i, score in enumerate(scores):
        for j, (scorer, args) in enumerate(score.leaves):
            key = _key(args, i, j)
            _, inputs = wanted.setdefault(id(scorer), (scorer, OrderedDict()))
            inputs.setdefault(key, (args, []))[1].append((i, j))
    for scorer, inputs in wanted.values():
        version = _version(scorer)
        known = {key: scorer.memory.get(key, version) for key in inputs}
        fresh = [key for key in inputs if known[key] is None]
        if fresh:
            with rows([inputs[key][1][0][0] for key in fresh]):
                found = (_scored if current() is None else _recorded)(scorer, [inputs[key] for key in fresh])
            for key, value in zip(fresh, found):
                known[key] = value
                _remember(scorer, key, value, version)
        for key, (_, places) in inputs.items():
            for i, j in places:
                results[i][j] = known[key]  # type: ignore[assignment]
    return [_combined(score, leaves, i) for i, (score, leaves) in enumerate(zip(scores, results))]


Wanted = tuple[tuple[Any, ...], list[tuple[int, int]]]
"""Arguments, and where they are wanted."""


def _scored(scorer: Scorer, wanted: Sequence[Wanted]) -> list[float]:
    """Return the numbers of some inputs."""
    charge(reward_calls=[1] * len(wanted))
    first = wanted[0][1][0][0]
    found = _found(scorer, scorer.score_batch([args for args, _ in wanted]), first)
    if len(found) != len(wanted):
        raise ScoreError(f"reward {scorer.name!r} got {len(wanted)} inputs and returned {len(found)} numbers", first)
    return [_checked(scorer, number, *one) for number, one in zip(found, wanted)]


def _recorded(scorer: Scorer, wanted: Sequence[Wanted]) -> list[float]:
    """Return those numbers that a journal knows, and find the others."""
    forms = [form_of((scorer, args), f"what {scorer!r} says") for args, _ in wanted]
    try:
        return served("reward", forms, lambda rows: _scored(scorer, [wanted[i] for i in rows]))
    except NotRecorded as error:
        if error.row is not None:
            error.row = wanted[error.row][1][0][0]
        raise


def remember(scorer: Scorer, args: tuple[Any, ...], number: float) -> None:
    """Let a reward know a result that it did not find by being scored. Raises `ScoreError` as `evaluate` does."""
    value = _checked(scorer, number, args, [(0, 0)])
    _remember(scorer, _key(args, 0, 0), value, _version(scorer))
    recorder = current()
    if recorder is not None:
        recorder.note("reward", form_of((scorer, args), f"what {scorer!r} says"), value)


def _remember(scorer: Scorer, key: Hashable, number: float, version: Hashable) -> None:
    if type(key) is not _Fleeting:
        scorer.memory.put(key, number, version)


def _version(scorer: Scorer) -> Hashable:
    return scorer.version() if hasattr(scorer, "version") else None


class _Fleeting(tuple[Any, ...]):
    """Stands for arguments that cannot be compared, or may change: known to one call of `evaluate` alone."""


def _key(args: tuple[Any, ...], i: int, j: int) -> Hashable:
    try:
        hash(args)
    except TypeError:
        return _Fleeting((i, j))
    key = tuple(type(arg) for arg in args), args  # 1, 1.0 and True are equal, and a reward may tell them apart
    return key if lasting(args) else _Fleeting(key)


def _number(value: Any, score: Score, nan: bool = False) -> float:
    try:
        number = real(value)
        if nan or not math.isnan(number):
            return number
    except TypeError:
        pass
    raise AmbiguousScore(f"{score!r} can be combined with a real number here, not with {value!r}")


def _found(scorer: Scorer, numbers: Any, index: int) -> list[Any]:
    try:
        return ordered(numbers)
    except TypeError as error:
        raise ScoreError(f"reward {scorer.name!r} returned {error}; it must return a list, in order", index) from error


def _combined(score: Score, leaves: Sequence[float], index: int) -> float:
    value = score.value(leaves)
    try:
        return real(value, bools=score.kind != "log_weight")
    except TypeError as error:
        raise ScoreError(f"{score!r} became {error}", index) from error


def _checked(scorer: Scorer, number: Any, args: tuple[Any, ...], places: list[tuple[int, int]]) -> float:
    try:
        value = real(number, bools=scorer.kind != "log_weight")
    except TypeError:
        value = math.nan
    if scorer.kind == "probability" and 1.0 < value <= 1.0 + _ROUNDING:
        value = 1.0
    bad = math.isnan(value) or value == math.inf
    if bad or (scorer.kind == "probability" and not 0.0 <= value <= 1.0):
        want = "a number in [0, 1]" if scorer.kind == "probability" else "a number below +inf"
        shown = ", ".join(short(arg, 80) for arg in args)
        raise ScoreError(
            f"reward {scorer.name!r} returned {number!r} for ({shown}); a {scorer.kind} must be {want}",
            places[0][0],
        )
    return value


class Reward:
    """A reward made of a Python function. Calling it gives a lazy `Score`.

    Make one with `reward`. ``fn`` gets the arguments of one input, or, where ``batched``, a list of inputs (of
    argument tuples, if there is more than one argument) and returns as many numbers.
    """

    def __init__(
        self, fn: Callable[..., Any], kind: Kind = "real", batched: bool = False, name: str = "", cache: int = 10_000
    ) -> None:
        if kind not in ("probability", "real", "log_weight"):
            raise ValueError(f"kind must be 'probability', 'real' or 'log_weight', not {kind!r}")
        self._fn = fn
        self.kind: Kind = kind
        self.batched = batched
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.memory = Memory[float](cache)
        self.__doc__ = getattr(fn, "__doc__", None) or type(self).__doc__

    def __call__(self, *args: Any) -> Score:
        """Return the score of one input, to be evaluated when awaited."""
        return Score(((self, args),), self.kind)

    def __repr__(self) -> str:
        return f"<{self.kind} reward {self.name}>"

    def version(self) -> Hashable:
        """Return None: of what the function depends on besides its arguments nothing is known."""
        return None

    @property
    def journal_key(self) -> Any:
        """What tells it from other rewards in a journal: its function."""
        return (self.kind, self.batched, self._fn)

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> Sequence[float]:
        """Return one number for each tuple of arguments."""
        if not self.batched:
            return [self._fn(*args) for args in inputs]
        found: Sequence[float] = self._fn([args[0] if len(args) == 1 else args for args in inputs])
        return found


@overload
def reward(
    fn: Callable[..., Any], *, kind: Kind = ..., batched: bool = ..., name: str = ..., cache: int = ...
) -> Reward: ...
@overload
def reward(
    fn: None = ..., *, kind: Kind = ..., batched: bool = ..., name: str = ..., cache: int = ...
) -> Callable[[Callable[..., Any]], Reward]: ...
def reward(
    fn: Callable[..., Any] | None = None,
    *,
    kind: Kind = "real",
    batched: bool = False,
    name: str = "",
    cache: int = 10_000,
) -> Reward | Callable[[Callable[..., Any]], Reward]:
    """Make a reward of a Python function; works as a decorator, with or without arguments.

    Args:
        fn: from one input to a number; or from a list of inputs to a list of numbers, if ``batched``.
        kind: ``"probability"`` (then use ``.log()`` or ``.logit()``), ``"real"`` (``/ beta``), ``"log_weight"``.
        batched: whether ``fn`` takes all inputs of a wave at once.
        name: in messages and tables; the function's own by default.
        cache: results remembered by input (0: none; do so where the function is random). Inputs are remembered where
            they cannot change: numbers, strings, texts, and tuples and frozen dataclasses of these; a list, an array
            or an object of your own may, and is scored afresh in each wave.

    >>> @reward(kind="probability")
    ... def short(text):
    ...     return 1.0 if len(text) < 5 else 0.25
    >>> evaluate([short("abc").log(), short("abcdef").log() * 2])
    [0.0, -2.772588722239781]
    """
    if fn is None:
        return lambda inner: Reward(inner, kind, batched, name, cache)
    return Reward(fn, kind, batched, name, cache)
