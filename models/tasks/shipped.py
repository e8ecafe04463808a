"""The small reasoners that ship with the library, of Countdown and of Sudoku, and the former's process reward models.

They were trained from scratch by the repository's scripts ``training/countdown.py``, ``training/sudoku.py`` and
``training/countdown_early.py``; `record` tells how, and what was measured.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, get_args

from ...ppl.lazy import needing
from ..fetch.shelf import Shelf
from .countdown import LIMIT
from .sudoku import SIZE

if TYPE_CHECKING:
    from ..local.transformers_lm import TransformersLM
    from ..rewards.networks.process import ValueHeadPRM
    from ..rewards.stepwise import Aggregate

Task = Literal["countdown", "sudoku"]
Which = Literal["overconfident", "early"]
_VERIFIERS: dict[Which, str] = {"overconfident": "countdown_verifier", "early": "countdown_verifier_early"}
TEMPERATURE = 0.7
"""At which a reasoner is sampled by default, and was when its verifier was trained."""
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
SYMBOLS = ("+", "-", "*", "/", "=", " (", ")", " >", "\n")
FIRST = 3
"""The token of the number 0; that of n is n further."""
SPACED = FIRST + LIMIT + 1
"""The token of a space and the number 0."""
SIGNS = SPACED + LIMIT + 1
"""The token of the first of `SYMBOLS`."""
WORDS: dict[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "countdown": (tuple(map(str, range(LIMIT + 1))), SYMBOLS),
    "sudoku": (("_", *map(str, range(1, SIZE + 1))), ("\n",)),
}
"""Of each task, the words that may have a space before them, and the signs."""


@cache
def tokenizer(task: Task = "countdown") -> Any:
    """Return a task's tokenizer: a token for each of its words, with or without a space before it, and each sign.

    >>> tokenizer().tokenize("3 15 > 18"), tokenizer("sudoku").tokenize("_ 4")
    (['3', ' 15', ' >', ' 18'], ['_', ' 4'])
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words, signs = WORDS[task]
    spaced = [f" {word}" for word in words]
    vocabulary = {token: i for i, token in enumerate((PAD, EOS, UNKNOWN, *words, *spaced, *signs))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[0-9]+|\n| ?[^0-9\n]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def record(name: str) -> dict[str, Any]:
    """Return what is on record of what ships.

    That is of "countdown_reasoner", its "countdown_verifier" (the overconfident one) and "countdown_verifier_early", or
    "sudoku_reasoner": data, licence, training and quality.

    >>> record("countdown_reasoner")["license"]
    'Apache-2.0'
    """
    return _shelf().record(name)


def reasoner(task: Task = "countdown", **options: Any) -> TransformersLM:
    """Return the language model of a task: a Llama that reads the ``prompt`` of a `Countdown` or a `Sudoku`.

    It has 0.9 million parameters for Countdown and 0.2 for Sudoku, is trained on random legal traces, some of which go
    astray, and solves a part of what it is asked. ``options`` go to `TransformersLM`; its texts are sampled at
    `TEMPERATURE` unless they or a step say otherwise. Raises ValueError for another task, DamagedWeights where the file
    does not match its checksum.

    >>> lm = reasoner()
    >>> lm.prompt("3 5 7 9 > 24\\n").prompt_tokens
    (6, 109, 111, 113, 212, 128, 213)
    """
    if task not in get_args(Task):
        raise ValueError(f"there are reasoners of {' and '.join(get_args(Task))}, not of {task!r}")
    with needing("fk.tasks.reasoner", "text"):
        from transformers import LlamaForCausalLM

        from ..language.drawing.sampling import Sampling
        from ..local.transformers_lm import TransformersLM

    model = _load(LlamaForCausalLM, f"{task}_reasoner")
    options = {"name": f"{task}-reasoner", "sampling": Sampling(TEMPERATURE), **options}
    return TransformersLM(model, tokenizer(task), **options)


def verifier(
    which: Which = "overconfident", *, aggregate: Aggregate = "last", max_batch: int = 256, **options: Any
) -> ValueHeadPRM:
    """Return a process reward model of Countdown: after each step, whether the problem will be solved.

    "early" gives the probability that the reasoner, sampled on from the end of a step, succeeds: it was trained on that
    probability, which is exact, after it had learned from numbers left alone which targets are in reach. It is
    calibrated for `TEMPERATURE`. With four numbers left, as after the first step of five, it knows nothing.

    "overconfident" was trained on whether the target can still be reached after a step (by the solver), and then on
    whether at least one of 4 rollouts of the reasoner from there reaches it (the hard labels of Math-Shepherd, Wang et
    al. 2024, arXiv:2312.08935). What can be reached is mostly missed, so it overrates early steps by far.

    `record` says how good either is, step by step. ``options`` go to `ValueHeadPRM`. Raises ValueError for another
    name, DamagedWeights where the file does not match its checksum.

    >>> prm, question = verifier(), "3 5 7 > 22\\n"
    >>> steps = ["5*3=15 (7 15)", "15+7=22 (22)"], ["5*3=15 (7 15)", "15-7=8 (8)"]
    >>> right, wrong = prm.details([(question, some) for some in steps])
    >>> right[1] > 0.9, wrong[1] < 0.1
    (True, True)
    """
    if which not in _VERIFIERS:
        raise ValueError(f"there are verifiers {' and '.join(map(repr, _VERIFIERS))}, not {which!r}")
    with needing("fk.tasks.verifier", "text"):
        from transformers import LlamaForTokenClassification

        from ..rewards.networks.process import ValueHeadPRM

    model = _load(LlamaForTokenClassification, _VERIFIERS[which])
    render = options.pop("render", _question)
    return ValueHeadPRM(model, tokenizer(), aggregate=aggregate, max_batch=max_batch, render=render, **options)


def _question(question: str, steps: tuple[str, ...]) -> str:
    return question


def _load(kind: Any, name: str) -> Any:
    from transformers import LlamaConfig

    model = kind(LlamaConfig(**record(name)["config"]))
    model.load_state_dict(_shelf().weights(name))
    return model.requires_grad_(False).eval()


def _shelf() -> Shelf:
    return Shelf(files(__package__) / "weights")
