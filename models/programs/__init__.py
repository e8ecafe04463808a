"""Published methods as programs: what a paper calls a system is one small file here, under any engine.

>>> import feynkac as fk
>>> model = fk.programs.HGF(omega=(-2.0, -2.0), precision=4.0)
>>> posterior = fk.infer(model.program([0.5, -0.2]), fk.SMC(1000), seed=0)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...ppl.cards import Card
from ...ppl.cards import index as _index
from ...ppl.lazy import find

if TYPE_CHECKING:
    from .agents.archon import archon
    from .agents.grm_vote import grm_vote
    from .agents.hogwild import hogwild
    from .agents.memorise import Memory, memorise
    from .agents.plan_and_verify import plan_and_verify
    from .agents.solve_or_verify import solve_or_verify
    from .agents.threads import threads
    from .agents.unlearn import unlearn
    from .hgf import HGF, Beliefs
    from .prompts.choose_prompt import choose_prompt
    from .prompts.chops import chops
    from .prompts.dynamic_experts import dynamic_experts
    from .prompts.hedged import hedged
    from .prompts.iterative_rag import iterative_rag
    from .prompts.medprompt import medprompt
    from .prompts.revise import revise
    from .prototypes import Belief, continual
    from .refine.backtrack import backtrack
    from .refine.cautious_completion import cautious_completion
    from .refine.early_exit import early_exit
    from .refine.iterative_decoding import iterative_decoding
    from .refine.markovian import markovian
    from .refine.q_exit import q_exit
    from .refine.self_correct import self_correct
    from .refine.specreason import specreason
    from .refine.stay_or_restart import stay_or_restart
    from .refine.switch_thinking import switch_thinking
    from .refine.trim import trim

__all__ = [
    "HGF",
    "Belief",
    "Beliefs",
    "Memory",
    "archon",
    "backtrack",
    "cautious_completion",
    "choose_prompt",
    "chops",
    "continual",
    "dynamic_experts",
    "early_exit",
    "grm_vote",
    "hedged",
    "hogwild",
    "index",
    "iterative_decoding",
    "iterative_rag",
    "markovian",
    "medprompt",
    "memorise",
    "plan_and_verify",
    "q_exit",
    "revise",
    "self_correct",
    "solve_or_verify",
    "specreason",
    "stay_or_restart",
    "switch_thinking",
    "threads",
    "trim",
    "unlearn",
]

_HOME = {
    "Belief": "prototypes",
    "Beliefs": "hgf",
    "HGF": "hgf",
    "Memory": "agents.memorise",
    "archon": "agents.archon",
    "backtrack": "refine.backtrack",
    "cautious_completion": "refine.cautious_completion",
    "choose_prompt": "prompts.choose_prompt",
    "chops": "prompts.chops",
    "continual": "prototypes",
    "dynamic_experts": "prompts.dynamic_experts",
    "early_exit": "refine.early_exit",
    "grm_vote": "agents.grm_vote",
    "hedged": "prompts.hedged",
    "hogwild": "agents.hogwild",
    "iterative_decoding": "refine.iterative_decoding",
    "iterative_rag": "prompts.iterative_rag",
    "markovian": "refine.markovian",
    "medprompt": "prompts.medprompt",
    "memorise": "agents.memorise",
    "plan_and_verify": "agents.plan_and_verify",
    "q_exit": "refine.q_exit",
    "revise": "prompts.revise",
    "self_correct": "refine.self_correct",
    "solve_or_verify": "agents.solve_or_verify",
    "specreason": "refine.specreason",
    "stay_or_restart": "refine.stay_or_restart",
    "switch_thinking": "refine.switch_thinking",
    "threads": "agents.threads",
    "trim": "refine.trim",
    "unlearn": "agents.unlearn",
}


def index() -> tuple[Card, ...]:
    """Return the index cards of what is here: paper, promise, engines, and what was measured, see `Card`."""
    return _index(sys.modules[__name__], "fk.programs")


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)
