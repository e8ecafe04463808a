"""Errors name the particle and the word to use."""

import numpyro
import numpyro.distributions as nd
import pytest

import feynkac as fk
from feynkac import errors


def test_a_reward_that_raises_names_the_particle_that_it_raised_for():
    @fk.reward
    def picky(x):
        if x == 3:
            raise RuntimeError("three")
        return float(x)

    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Categorical([0.2] * 5))
        fk.deterministic("output", x)
        await fk.factor("G", picky(x) / 1.0)
        return x

    for seed in range(10):
        with pytest.raises(RuntimeError, match="three") as caught:
            fk.infer(model(), fk.SMC(64), seed=seed)
        (note,) = [note for note in caught.value.__notes__ if note.startswith("feynkac: particle")]
        assert "x=3" in note


def test_a_sample_of_numpyro_in_a_program_is_told_of_fk_sample():
    @fk.program
    async def model():
        return numpyro.sample("x", nd.Normal(0.0, 1.0))

    with pytest.raises(errors.ForeignAwaitable, match=r"await fk\.sample") as caught:
        fk.infer(model(), fk.SMC(4), seed=0)
    assert "particle 0 of 4" in "".join(caught.value.__notes__)
