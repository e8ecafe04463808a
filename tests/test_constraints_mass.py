"""What a potential multiplies in before the first token: masses of constrained texts, from the beginning on.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 20 here. Seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from laws import Z_LIMIT, check_unbiased, z_score

pytest.importorskip("torch")

from toys_constrained import letters_lm, target, whole_prob

from feynkac.models.constraints import Vocabulary, constrained, mixture, targeting
from feynkac.models.constraints.potential import Potential

PROMPT = "ab"


class Weighted(Potential):
    """Strings with weights of their own: what a beginning is worth is the sum of its completions."""

    def __init__(self, lm, **weights):
        self.vocabulary = Vocabulary.of(lm)
        self.known = {lm.encode(string): weight for string, weight in weights.items()}

    def prefix(self, context):
        total = sum(w for ids, w in self.known.items() if ids[: len(context)] == context)
        return math.log(total) if total else -math.inf

    def complete(self, context):
        return math.log(self.known[context]) if context in self.known else -math.inf


def in_steps(made, text, k):
    """A kernel of so many tokens, or of the rest."""
    lm = letters_lm()
    return made(lm.tokens(text, k) if k else lm.complete(text, max_tokens=3))


@fk.program
async def whole(potential, made=targeting, steps=(None,), start=""):
    text = letters_lm().prompt(PROMPT)
    text = text.append(start) if start else text
    for k in steps:
        text = await fk.sample("step", in_steps(lambda step: made(step, potential), text, k))
        await fk.factor("end of step", 0.0)
    return str(text)


@pytest.mark.parametrize("steps", [(None,), (1, None), (1, 1, 1, None)], ids=str)
def test_a_set_of_weights_1_2_3_has_a_mass_of_6(steps):
    potential = Weighted(letters_lm(), a=1.0, ba=2.0, bc=3.0)
    potential.check([(), (1,), (2,), (2, 1), (3,)])
    for posterior in fk.infer([whole(potential, steps=steps)] * 5, fk.SMC(3), seed=0):  # drawn from it: no variance
        assert math.exp(posterior.log_evidence) == pytest.approx(6.0)
    text = letters_lm().prompt(PROMPT)
    kernel = targeting(letters_lm().complete(text, max_tokens=3), potential)
    value = kernel.sample_batch([kernel], fk.keys.root(0)).values[0]
    found = kernel.log_prob_batch([kernel], [value])[0]
    assert math.exp(found) == pytest.approx(potential.known[value.tokens[:-1]])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_a_model_times_weights_has_the_mass_of_both(sampler):
    lm = letters_lm()
    potential = Weighted(lm, a=1.0, ba=2.0, bc=9.0)
    z, law = target({s: w * whole_prob(lm, PROMPT, s) for s, w in {"a": 1.0, "ba": 2.0, "bc": 9.0}.items()})

    def made(step, potential):
        return constrained(step, potential, sampler=sampler)

    check_unbiased(whole(potential, made, (1, None)), fk.SMC(4, all_dead="zero"), law, math.log(z), runs=800)


def test_potentials_chosen_by_a_coin_keep_their_masses():
    lm = letters_lm()
    small, large = Weighted(lm, b=1.0), Weighted(lm, a=1.0, ba=2.0, bc=3.0)

    @fk.program
    async def coin():
        which = await fk.sample("which", fk.dist.Bernoulli(0.5))
        await fk.sample("text", targeting(lm.complete(lm.prompt(PROMPT), max_tokens=3), large if which else small))
        return which

    check_unbiased(coin(), fk.SMC(4), {1: 6 / 7, 0: 1 / 7}, math.log(3.5), runs=600)


@pytest.mark.parametrize(
    ("combine", "mass"),
    [
        (lambda a, b: a * b, 1 * 2 + 2 * 3),
        (lambda a, b: a**2 / b, 1 / 2 + 4 / 3),
        (lambda a, b: mixture([a, b], [0.25, 2.0]), 0.25 * 6 + 2.0 * 10),
        (lambda a, b: a.after(0) * b, 1 * 2 + 2 * 3),
    ],
    ids=["product", "quotient", "mixture", "after nothing"],
)
def test_composites_have_the_mass_of_the_whole(combine, mass):
    lm = letters_lm()
    potential = combine(Weighted(lm, a=1.0, ba=2.0, bc=3.0), Weighted(lm, a=2.0, ba=3.0, c=5.0))
    found = [p.log_evidence for p in fk.infer([whole(potential, steps=(1, None))] * 400, fk.SMC(4), seed=0)]
    assert abs(z_score(np.exp(found), mass)) < Z_LIMIT


def test_a_potential_of_what_follows_begins_there():
    lm = letters_lm()
    inner = Weighted(lm, a=1.0, ba=2.0, bc=3.0)
    for potential, start, mass in [
        (inner.after(2), "ca", 6.0),
        (inner.after(1).after(1), "ca", 6.0),
        (inner, "b", 1.0),
    ]:
        found = fk.infer(whole(potential, start=start), fk.SMC(2), seed=0)
        # What the text held before is not weighed: a potential from its beginning on is relative to it.
        assert math.exp(found.log_evidence) == pytest.approx(mass), (potential, start)
    both = inner.after(1) * Weighted(lm, ca=1.0, cba=1.0)  # one begins here, the other has begun
    assert both.origin is None
    assert math.exp(fk.infer(whole(both, start="c"), fk.SMC(2), seed=0).log_evidence) > 0.5
    with pytest.raises(ValueError, match="the parts of a mixture must begin at one place"):
        mixture([inner, inner.after(1)], [0.5, 0.5])


def test_what_has_no_weight_from_the_beginning_dies_there():
    posterior = fk.infer(whole(Weighted(letters_lm())), fk.SMC(2, all_dead="zero"), seed=0)
    assert posterior.log_evidence == -math.inf
    assert posterior.cost.tokens_out == 0


class Boolish(Weighted):
    """Says True where it means a weight."""

    def prefix(self, context):
        return len(context) < 2


@pytest.mark.parametrize("made", [targeting, constrained])
def test_a_bool_is_no_log_weight(made):
    potential = Boolish(letters_lm(), a=1.0)
    with pytest.raises(fk.errors.InvalidWeight, match="among its log-weights there is a bool"):
        fk.infer(whole(potential, made), fk.SMC(2), seed=0)
