"""Power-SMC has the sharpened law, and its evidence."""

import numpy as np
import pytest
from outcomes import Speller, estimate, expected

import feynkac as fk
from feynkac.inference.base import resampling
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


def exact(power, weighed, length=4):
    """Return p^α·∏G of every run."""
    runs = fk.enumerate_program(letters(weighed=False, length=length))
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("power", "bridge"), [(4.0, 0), (4.0, 2), (-1.0, 9)])
def test_every_outcome_of_two_particles_enumerated_sums_to_the_sharpened_law(monkeypatch, power, bridge):
    """E[Ẑ·W(x)] = p(x)^α·∏G(x) to rounding, also where a bridge makes the estimate vary without bounds."""
    law = {"": {"a": 0.7, "z": 0.3}, "a": {"a": 0.2, "b": 0.8}, "aa": {"a": 0.5, "b": 0.5}, "ab": {"a": 0.9, "b": 0.1}}
    chooser = {}

    def model(choose):
        chooser["choose"] = choose
        return Speller(choose, law.__getitem__, lambda text: 0.4 * text.count("b"), lambda _: 0.0, ends=3)

    def resample(log_weights, m, key, scheme):
        weights = np.exp(log_weights - np.max(log_weights))
        return np.array([chooser["choose"](weights / weights.sum()) for _ in range(m)])

    monkeypatch.setattr(resampling, "resample", resample)
    mean, _, count = expected(fk.PowerSMC(2, power=power, bridge=bridge, ess_threshold=1.0), model)
    assert count > 100
    assert mean == pytest.approx(model(None).exact(power), rel=1e-10)


def asymptotic(power, bridge, length):
    """Return n·Var(Ẑ)/Z² for many particles that are resampled at each step: Σ_t χ²(target of the first t | drawn)."""

    def log_p(text):
        return sum(np.log(LAW[text[:i][-1:]][int(letter)]) for i, letter in enumerate(text))

    def over(text):
        return len(text) == length or text.endswith("2")

    target = exact(power, True, length)
    total, level = 0.0, {"": 1.0}
    for step in range(length):
        drawn = {}
        for text, mass in level.items():
            followers = {text: 1.0} if text and over(text) else dict(zip([text + c for c in "012"], LAW[text[-1:]]))
            drawn.update({after: mass * p for after, p in followers.items()})
        wanted = dict.fromkeys(drawn, 0.0)
        for text, weight in target.items():
            wanted[text[: step + 1]] += weight / sum(target.values())
        total += sum(wanted[text] ** 2 / drawn[text] for text in drawn) - 1
        short = (power - 1) * max(0.0, 1 - step / bridge) if bridge else 0.0
        gains = {text: sum(GAIN[letter] for letter in text) for text in drawn}
        level = {t: np.exp(power * log_p(t) + gains[t] - (0.0 if over(t) else short * log_p(t))) for t in drawn}
        kept = sum(level.values())
        level = {text: mass / kept for text, mass in level.items()}
    return total


@pytest.mark.slow
def test_a_long_bridge_to_a_negative_power_reads_low_by_its_variance():
    """Its guide keeps the likely, and the target wants the rare: 40,000 particles have a standard deviation of 9 Z."""
    rng = np.random.default_rng(0)
    law = {text: dict(zip("abz", LAW[before])) for text, before in (("", ""), ("a", "0"), ("b", "1"))}
    gain = dict(zip("abz", GAIN.values()))

    def choose(probabilities):
        return int(np.searchsorted(np.cumsum(probabilities), rng.random() * sum(probabilities)))

    model = Speller(choose, lambda text: law[text[-1:]], lambda text: gain[text[-1]], lambda _: 0.0, ends=5)
    z = sum(exact(-1.0, True, 5).values())
    assert sum(model.exact(-1.0).values()) == pytest.approx(z)
    for bridge in (0, 1):
        engine = fk.PowerSMC(300, power=-1.0, bridge=bridge, ess_threshold=1.0, resampling="multinomial")
        ratios = [sum(estimate(engine, model, seed).values()) / z for seed in range(60)]
        # A variance of 60 estimates errs by a fifth, or two where the tail is heavy; the two differ by a factor of 2.2.
        assert 0.5 < 300 * np.var(ratios, ddof=1) / asymptotic(-1.0, bridge, 5) < 2.0
    assert asymptotic(-1.0, 9, 5) / 40_000 > 70
    assert asymptotic(-1.0, 9, 5) > 40_000 * asymptotic(-1.0, 0, 5)
