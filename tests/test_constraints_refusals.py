"""What constraints refuse, by name."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import PATTERN, PROMPT, CountA, by_token, letters_lm

from feynkac.models.constraints import AWRS, Constraint, Language, Rewarded, Where, constrained, mixture, targeting
from feynkac.models.testing import tiny_lm
from feynkac.ppl import keys as fkeys

C = fk.constraints


def test_a_reward_as_a_potential_must_be_a_log_weight():
    lm = letters_lm()

    @fk.reward(kind="probability")
    def fine(text):
        return 0.25

    start = lm.prompt(PROMPT)
    with pytest.raises(fk.errors.AmbiguousScore, match=r"fine.*\.log\(\)"):
        Rewarded(start, fine).complete(())
    with pytest.raises(TypeError, match=r"returned 0\.25"):
        Rewarded(start, lambda text: 0.25).complete(())
    assert Rewarded(start, lambda text: fine(text).log()).complete(()) == pytest.approx(math.log(0.25))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm: C.regex(lm, r"[^\s\S]"), "matches no text at all"),
        (lambda lm: C.regex(lm, "(ab"), "cannot be read: .*unclosed group"),
        (lambda lm: C.lark(lm, "start: missing"), "cannot be read: .*unknown name"),
        (lambda lm: C.json_schema(lm, {"allOf": [{"type": "string"}, {"type": "number"}]}), "Unsatisfiable schema"),
        (lambda lm: C.json_schema(lm, {"type": "blub"}), "cannot be read: Invalid type"),
    ],
)
def test_grammars_that_cannot_be_kept_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_lm())


def test_other_tokens_are_refused_by_name():
    lm, letters = tiny_lm(), letters_lm()
    message = "tokenizer of letters-abc-0 .* and the tokenizer of tiny-.* are not the same tokens"
    with pytest.raises(ValueError, match=message):
        Language(letters, letters.prompt("a")) * C.regex(lm, "a")
    with pytest.raises(ValueError, match="not the same tokens"):
        C.regex(letters, "a") * C.regex(lm, "a")
    with pytest.raises(ValueError, match=r"\(4 tokens\) .* \(4 tokens\) are not the same tokens"):
        C.regex(letters, "a") * C.regex(letters_lm(letters="abd"), "a")
    with pytest.raises(ValueError, match="not the same tokens"):
        mixture([C.regex(letters, "a"), C.regex(lm, "a")], [0.5, 0.5])
    with pytest.raises(ValueError, match="not the same tokens"):
        constrained(lm.next_token(lm.prompt("Once")), C.regex(letters, "a"))


def test_arguments_are_refused():
    lm = letters_lm()
    text, grammar = lm.prompt("a"), C.regex(lm, PATTERN)
    for bad in (
        lambda: constrained(lm.next_token(text, temperature=0), grammar),
        lambda: constrained(lm.next_token(text, mask=np.ones(4, bool)), grammar),
        lambda: constrained(lm.next_token(text), grammar, sampler="beam"),
        lambda: targeting(lm.next_token(text, temperature=0.5), grammar),
        lambda: grammar**0,
        lambda: Language(lm, text) ** math.inf,
        lambda: mixture([grammar], [0.5, 0.5]),
        lambda: mixture([grammar], [-1.0]),
        lambda: AWRS(max_accepts=1),
        lambda: AWRS("recursive", max_rejects=5),
        lambda: AWRS("other"),
    ):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(TypeError, match="a step of a language model"):
        constrained(fk.dist.Normal(0, 1), grammar)
    with pytest.raises(TypeError, match="a Potential is needed"):
        constrained(lm.next_token(text), lambda text: 0.0)


class DeadEnd(Constraint):
    """Alive for two tokens, and then nothing."""

    def __init__(self, lm):
        self.vocabulary = C.Vocabulary.of(lm)

    def viable(self, context):
        return len(context) <= 2 and 0 not in context

    def accepts(self, context):
        return False


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_a_constraint_that_dies_kills_at_its_site(sampler):
    lm = letters_lm()
    with pytest.raises(fk.errors.AllParticlesDead, match="4 at site 'rest'"):
        fk.infer(by_token(lm, DeadEnd(lm), sampler), fk.SMC(4), seed=0)
    (posterior,) = fk.infer([by_token(lm, DeadEnd(lm), sampler)], fk.SMC(4, all_dead="zero"), seed=0)
    assert posterior.log_evidence == -math.inf


def test_a_weight_that_is_no_number_is_named():
    lm = letters_lm()
    vocabulary = C.Vocabulary.of(lm)
    bad = CountA(vocabulary, lambda context: math.nan if len(context) == 2 else 0.0)
    with pytest.raises(
        fk.errors.InvalidWeight, match=r"CountA: after the tokens \(\d,\) a log-weight is nan"
    ) as raised:
        fk.infer(by_token(lm, bad), fk.SMC(2), seed=0)
    assert "token" in "".join(raised.value.__notes__)


def test_a_full_context_leaves_no_room_for_the_end():
    lm = letters_lm(context=6)
    step = constrained(lm.complete(lm.prompt("ab"), max_tokens=20), Where(lm, lambda s: True, lambda s: len(s) > 9))
    draws = step.sample_batch([step] * 3, fkeys.fold(fkeys.root(0), np.arange(3)))
    assert (draws.log_prob == -math.inf).all()


def test_a_law_beyond_the_context_of_its_model_is_refused():
    small = letters_lm(context=6)
    law = Language(small, small.prompt("ab"))
    assert np.isfinite(law.prefix((1, 2, 1, 2)))
    with pytest.raises(fk.errors.ContextOverflow, match="7 tokens are more than its context of 6"):
        law.prefix((1, 2, 1, 2, 1))


def test_a_context_that_is_too_short_for_what_comes_after_is_refused():
    rest = C.regex(letters_lm(), PATTERN).after(2)
    assert rest.prefix((3, 3)) == 0.0
    with pytest.raises(ValueError, match=r"after 2 tokens was asked about \(3,\), which has only 1 tokens"):
        rest.prefix((3,))


@pytest.mark.parametrize("law", [Language, C.ByteLM])
def test_a_law_after_a_finished_text_is_refused(law):
    lm = tiny_lm()
    lm.eos = frozenset(range(lm.vocab_size))
    step = lm.tokens(lm.prompt("Once"), 1)
    over = step.sample_batch([step], fkeys.root(0)).values[0]
    with pytest.raises(ValueError, match="is finished, so that no response comes after it"):
        law(lm, over)
