"""Rewards and verifiers, all lazy, batched, typed and cached. Heavy libraries are imported when a name is first used.

    Classifier      a sequence classifier or reward model of transformers
    StepTokenPRM    a process reward model that answers at a step's end with a token
    ValueHeadPRM    a process reward model with a head on every token
    Judge           P(yes) of a language model's answer
    Grader          the expected grade of a language model's answer
    Votes           the mean of sampled verdicts
    Embedding       cosine similarity to references
    Served          a classifier, a scorer of pairs, a pooled reward or embeddings behind a server
    ServedPRM       a process reward model behind a server
    OnnxReward      an ONNX model
    Checker         a Python function with a time limit, in processes of its own
    CodeTests       model-written Python run against tests
    Ensemble        several rewards as one

Calling a reward gives a `Score`, to be awaited in ``fk.factor``, ``fk.twist`` or ``fk.call``. A `Text` is judged by its
response, ``str(text)``; a ``template`` makes a prompt, a pair or chat messages of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ppl.lazy import find

if TYPE_CHECKING:
    from .checker import Checker, CheckerError, Outcome
    from .classifier import Classifier
    from .embedding import Embedding
    from .ensemble import Ensemble
    from .judge import Grader, Judge
    from .onnx import OnnxReward
    from .process import StepTokenPRM, ValueHeadPRM, linear_head
    from .programs import CodeTests, Run, extract_code, run_python
    from .served import Served
    from .served_prm import ServedPRM
    from .votes import Verdicts, Votes, VotesError

_HOME = {
    "Checker": "checker",
    "CheckerError": "checker",
    "Classifier": "classifier",
    "CodeTests": "programs",
    "Embedding": "embedding",
    "Ensemble": "ensemble",
    "Grader": "judge",
    "Judge": "judge",
    "OnnxReward": "onnx",
    "Outcome": "checker",
    "Run": "programs",
    "Served": "served",
    "ServedPRM": "served_prm",
    "StepTokenPRM": "process",
    "ValueHeadPRM": "process",
    "Verdicts": "votes",
    "Votes": "votes",
    "VotesError": "votes",
    "extract_code": "programs",
    "linear_head": "process",
    "run_python": "programs",
}

__all__ = [
    "Checker",
    "CheckerError",
    "Classifier",
    "CodeTests",
    "Embedding",
    "Ensemble",
    "Grader",
    "Judge",
    "OnnxReward",
    "Outcome",
    "Run",
    "Served",
    "ServedPRM",
    "StepTokenPRM",
    "ValueHeadPRM",
    "Verdicts",
    "Votes",
    "VotesError",
    "extract_code",
    "linear_head",
    "run_python",
]


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)
