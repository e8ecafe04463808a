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
    from .code.checker import Checker, CheckerError, Outcome
    from .code.programs import CodeTests, Run, extract_code, run_python
    from .ensemble import Ensemble
    from .judges.judge import Grader, Judge
    from .judges.votes import Verdicts, Votes, VotesError
    from .networks.classifier import Classifier
    from .networks.embedding import Embedding
    from .networks.onnx import OnnxReward
    from .networks.process import StepTokenPRM, ValueHeadPRM, linear_head
    from .servers.served import Served
    from .servers.served_prm import ServedPRM

_HOME = {
    "Checker": "code.checker",
    "CheckerError": "code.checker",
    "Classifier": "networks.classifier",
    "CodeTests": "code.programs",
    "Embedding": "networks.embedding",
    "Ensemble": "ensemble",
    "Grader": "judges.judge",
    "Judge": "judges.judge",
    "OnnxReward": "networks.onnx",
    "Outcome": "code.checker",
    "Run": "code.programs",
    "Served": "servers.served",
    "ServedPRM": "servers.served_prm",
    "StepTokenPRM": "networks.process",
    "ValueHeadPRM": "networks.process",
    "Verdicts": "judges.votes",
    "Votes": "judges.votes",
    "VotesError": "judges.votes",
    "extract_code": "code.programs",
    "linear_head": "networks.process",
    "run_python": "code.programs",
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
