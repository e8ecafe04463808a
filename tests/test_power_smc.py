"""Power-SMC has the sharpened law, and its evidence."""

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.errors import Unsupported

LAW = {"": [0.5, 0.2, 0.3], "0": [0.1, 0.6, 0.3], "1": [0.9, 0.05, 0.05], "2": [0.34, 0.33, 0.33]}
GAIN = {"0": 0.4, "1": -0.7, "2": 0.0}


@fk.program
async def letters(weighed=True, cold=None, length=4):
    """Write letters until a 2; each is weighed."""
    text = ""
    while len(text) < length and not text.endswith("2"):
        law = np.array(LAW[text[-1:]])
        proposal = None
        if cold is not None:
            proposal = fk.dist.Categorical(law ** (1 / cold) / (law ** (1 / cold)).sum())
        text += str(int(await fk.sample("letter", fk.dist.Categorical(law), proposal=proposal)))
        await fk.factor("gain", GAIN[text[-1]] if weighed else 0.0)
    return text


def exact(power, weighed):
    """Return p^α·∏G of every run."""
    runs = fk.enumerate_program(letters(weighed=False))
    gain = [sum(GAIN[letter] for letter in text) if weighed else 0.0 for text in runs.values]
    return dict(zip(runs.values, np.exp(power * np.array(runs.log_weights) + gain)))


@pytest.mark.parametrize("power", [4.0, 0.5, 1.0, 0.0])
@pytest.mark.parametrize("bridge", [0, 3])
def test_the_evidence_is_unbiased(power, bridge):
    law = exact(power, True)
    engine = fk.PowerSMC(16, power=power, bridge=bridge, ess_threshold=1.0)
    posteriors = fk.infer([letters()] * 250, engine, seed=1)
    found = np.exp([posterior.log_evidence for posterior in posteriors])
    total = sum(law.values())
    assert abs(found.mean() - total) < 4.265 * found.std(ddof=1) / np.sqrt(250)  # 2e-5
    hits = found * [posterior.expect(lambda text: text == "02") for posterior in posteriors]
    assert abs(hits.mean() - law["02"]) < 4.265 * hits.std(ddof=1) / np.sqrt(250)


@pytest.mark.parametrize("cold", [None, 0.25])
def test_the_law_is_the_sharpened_one_and_not_the_cold_one(cold):
    law = exact(4.0, False)
    sharp = np.array(list(law.values())) / sum(law.values())
    engine = fk.PowerSMC(3000, power=4.0, bridge=2)
    posterior = fk.infer(letters(weighed=False, cold=cold), engine, seed=0)
    found = np.array([posterior.expect(lambda text, x=text: text == x) for text in law])
    assert 0.5 * np.abs(found - sharp).sum() < 0.05
    cold_law = fk.infer(letters(weighed=False, cold=0.25), fk.ImportanceSampling(1000), seed=0)
    cold_found = np.array([np.mean([text == x for text in cold_law.values]) for x in law])
    assert 0.5 * np.abs(cold_found - sharp).sum() > 0.1


def test_power_one_is_smc():
    for seed in range(3):
        one, other = (
            fk.infer(letters(), engine, seed=seed) for engine in (fk.PowerSMC(20, power=1.0, bridge=3), fk.SMC(20))
        )
        assert one.values == other.values
        assert one.log_evidence == other.log_evidence


def test_bridging_changes_when_particles_part_and_not_their_weights():
    bridged, plain = (
        fk.infer(letters(), fk.PowerSMC(12, bridge=bridge, ess_threshold=0.0), seed=3) for bridge in (3, 0)
    )
    assert bridged.values == plain.values
    assert bridged.log_weights == pytest.approx(plain.log_weights)
    assert any(step.log_twist.any() for step in bridged.steps)
    assert not bridged.steps[-1].log_twist.any()


def test_what_cannot_be_is_refused():
    for settings, words in (
        ({"power": float("inf")}, "power"),
        ({"bridge": -1}, "bridge"),
        ({"particles": 0}, "particles"),
        ({"ess_threshold": 2.0}, "ess_threshold"),
        ({"resampling": "best"}, "resampling"),
    ):
        with pytest.raises(ValueError, match=words):
            fk.PowerSMC(**{"particles": 4, **settings})

    class Silent(fk.dist.Normal):
        def _sample(self, requests, keys):
            return super()._sample(requests, keys)._replace(log_prob=None)

    @fk.program
    async def silent():
        return await fk.sample("x", Silent(0.0, 1.0))

    with pytest.raises(Unsupported, match="some choice of the model has none: particle 0 made it at step 0"):
        fk.infer(silent(), fk.PowerSMC(4), seed=0)
