"""Simulation-based calibration: right engines pass, and each way of being wrong is caught where it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.base.engine import Report, Start
from feynkac.inference.calibration.calibrate import _ranks
from feynkac.inference.calibration.chi_squared import chi2_tail, chi2_threshold

LIKELIHOOD = "log p(y|θ)"
LEAST = 3 * 55.43


@fk.program
async def normal(y=1.5):
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    await fk.observe("y", fk.dist.Normal(z, 0.5), y)
    return z


@dataclass(frozen=True)
class Conjugate:
    """Draws of the program above from its posterior N(.8 y, .2): exact, or with another spread, or from its prior."""

    particles: int = 39
    width: float | None = 1.0
    chains: int = 1
    guarantee: Any = "consistent"

    def run(self, model, key):
        keys = fk.keys.fold(key, np.arange(self.particles))
        first = yield Start(keys[:1])
        y = next(site.value for site in first.choices[0] if site.kind == "observe")
        mean, sd = (0.0, 1.0) if self.width is None else (0.8 * y, self.width * math.sqrt(0.2))
        z = mean + sd * fk.keys.normal(fk.keys.fold(keys, 1))
        made = yield Start(keys, [{"z": x} for x in z.tolist()])
        step = fk.Step(
            depth=0,
            ess=1.0,
            entropy=0.0,
            log_evidence=math.nan,
            resampled=False,
            ancestors=np.arange(len(z)),
            log_weights=np.zeros(len(z)),
            log_potential=made.log_potential,
            log_twist=np.zeros(len(z)),
            done=made.done,
            choices=made.choices,
        )
        yield Report(made.state, np.zeros(len(z)), step, math.nan)


def found(engine, simulations, **settings):
    calibration = fk.calibrate(normal(), engine, simulations, 39, seed=0, **settings)
    return calibration, {row.name: row for row in calibration.table()}


@pytest.fixture(scope="module")
def right():
    return found(Conjugate(), 400)


def test_a_right_engine_passes(right):
    calibration, rows = right
    assert list(rows) == ["z", LIKELIHOOD]
    assert calibration.ok  # a right engine is rejected with probability 2 × 2e-5
    assert calibration.threshold == pytest.approx(55.43, abs=0.005)
    assert all(row.chi2 < 40 and row.p_value > 2e-3 for row in rows.values())
    assert all(abs(row.location) < 4.265 and abs(row.spread) < 4.265 for row in rows.values())


def test_the_prior_for_a_posterior_is_caught_by_the_likelihood_alone():
    calibration, rows = found(Conjugate(width=None), 400)
    assert rows["z"].ok
    assert rows[LIKELIHOOD].chi2 > LEAST  # 2,814 for 2,000 simulations
    assert not calibration.ok
    assert "rejected: draws too low" in repr(calibration)


def test_a_posterior_that_is_too_narrow_is_caught():
    _, rows = found(Conjugate(width=0.6), 400)
    assert rows["z"].chi2 > LEAST
    assert rows["z"].spread > 10


@pytest.mark.slow
def test_the_power_of_2000_simulations():
    chi2 = {}
    for width in (1.0, 0.8, None):
        calibration = fk.calibrate(normal(), Conjugate(99, width), 2000, 99, seed=1)
        chi2[width] = {row.name: row.chi2 for row in calibration.table()}
    assert chi2[1.0]["z"] < 55.43
    assert 90 < chi2[0.8]["z"] < 260  # 165 of another run: a noncentral χ² of standard deviation 25
    assert chi2[None]["z"] < 55.43
    assert chi2[None][LIKELIHOOD] == pytest.approx(2814, rel=0.15)


def test_ranks_and_their_ties():
    key = fk.keys.fold(fk.keys.root(0), np.arange(2000))
    drawn = {"a": np.array([0.0, 1.0, 1.0, 2.0]), "b": np.array([3.0, 4.0, 5.0, 6.0])}
    found = np.array([_ranks({"a": 1.0, "b": 5.5}, drawn, ("a", "b"), key[i : i + 1]) for i in range(2000)])
    assert (found[:, 1] == 3).all()
    counts = np.bincount(found[:, 0], minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert ((counts[1:4] - 2000 / 3) ** 2).sum() / (2000 / 3) < chi2_threshold(2, 2e-5)


def test_chi_squared_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 2, 9, 19, 30):
        for x in (0.3, 5.0, 40.0, 400.0):
            assert chi2_tail(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-9)
    assert chi2_threshold(19, 2e-5) == pytest.approx(stats.chi2.isf(2e-5, 19), rel=1e-9)
    assert chi2_tail(0.0, 3) == 1.0


# -- programs and engines -----------------------------------------------------------------------------------------


@fk.program
async def series(y, proposal=False):
    """A state-space program with a discrete latent, arrays, a mask, a guided proposal and a random call."""
    rate = await fk.sample("rate", fk.dist.Bernoulli(0.3))
    at = await fk.sample("at", fk.dist.Normal(np.zeros(2), 1.0))

    async def step(x, seen):
        law = fk.dist.Normal((0.9 if rate else -0.5) * x, 1.0)
        x = await fk.sample("x", law, proposal=fk.dist.Normal(0.5, 2.0) if proposal else None)
        with fk.handlers.mask(mask=np.array([True, False])):
            await fk.observe("y", fk.dist.Normal(np.array([x, at[0]]), 0.7), seen)
        return x, x

    await fk.scan(step, at[1], y)
    return {"rate": rate, "sum": float(at.sum())}


Y = [np.zeros(2), np.ones(2)]


@pytest.mark.slow
def test_smc_is_calibrated_on_a_program_of_many_kinds_of_sites():
    calibration = fk.calibrate(series(Y, proposal=True), fk.SMC(60), 60, 19, bins=5, seed=0)
    assert calibration.names == ("rate", "at.0", "at.1", "x", "x[1]", LIKELIHOOD)
    assert calibration.ok  # six of them at 2e-5, but for the bias of 60 particles
    assert calibration.ranks.shape == (6, 60)
    assert "SMC(particles=60" in repr(calibration)


def test_few_particles_fail_by_their_bias():
    calibration = fk.calibrate(normal(), fk.ImportanceSampling(2), 200, 19, bins=10, seed=0)
    assert not calibration.ok
    assert "in 100% of the simulations the ESS is below the 19 draws" in repr(calibration)


@pytest.mark.slow
def test_chains_give_evenly_spaced_draws():
    calibration = fk.calibrate(normal(), fk.SuffixMH(60), 60, 9, bins=5, seed=0)
    assert calibration.ok
    assert ((calibration.ranks >= 0) & (calibration.ranks <= 9)).all()


def test_quantities_are_of_what_a_program_returns():
    quantities = {"sum": lambda v: v["sum"], "rate": lambda v: v["rate"]}
    calibration = fk.calibrate(series(Y), fk.SMC(20), 5, 9, quantities, bins=5, seed=0)
    assert calibration.names == ("sum", "rate", LIKELIHOOD)
    with pytest.raises(ValueError, match="'sum' is inf, which has no rank"):
        fk.calibrate(series(Y), fk.SMC(20), 5, 9, {"sum": lambda v: math.inf}, bins=5, seed=0)


def test_the_same_seed_gives_the_same_ranks(right):
    calibration, _ = right
    again = fk.calibrate(normal(-3.0), Conjugate(), 20, 39, seed=0)
    other = fk.calibrate(normal(-3.0), Conjugate(), 20, 39, seed=1)
    assert (again.ranks != other.ranks).any()
    assert (again.ranks == fk.calibrate(normal(), Conjugate(), 20, 39, seed=0).ranks).all()  # what y is matters not
    assert len(calibration) == 400


# -- showing, stopping, refusing ----------------------------------------------------------------------------------


def test_a_calibration_shows_itself(right):
    pytest.importorskip("matplotlib")
    calibration, _ = right
    assert repr(calibration).splitlines()[1].startswith("z ")
    assert "<td>log p(y|θ)</td>" in calibration._repr_html_()
    panels = calibration.plot().axes
    assert [ax.get_title(loc="left") for ax in panels] == ["z", "", LIKELIHOOD, ""]
    heights = [bar.get_height() for bar in panels[0].patches if bar.get_width() == 0.9]
    assert heights == calibration.counts[0].tolist()
    band = calibration.band()
    assert band.shape == (40,)
    assert 0.04 < band.max() < 0.1
    few = replace(calibration, ranks=calibration.ranks[:, :60])
    assert "χ² wants 100 simulations or more for 20 bins" in repr(few)
    assert few.table()[0].name == "z"


def test_what_is_done_is_kept_when_it_is_interrupted(monkeypatch):
    import feynkac.inference.calibration.calibrate as module

    real, calls = module.infer, []

    def infer(*args, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(module, "_TOGETHER", 390)
    monkeypatch.setattr(module, "infer", infer)
    calibration, _ = found(Conjugate(), 50)
    assert (len(calibration), calibration.stopped) == (20, "interrupted")
    assert "stopped: interrupted" in repr(calibration)
    calls[:] = []
    monkeypatch.setattr(module, "infer", lambda *args, **s: infer(*args, **s) if len(calls) < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        found(Conjugate(), 50)
    assert len(error.value.calibration) == 10


@fk.program
async def weighed():
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    await fk.factor("judge", -z * z)
    await fk.observe("y", fk.dist.Normal(z, 0.5), 0.0)


@fk.program
async def repeated():
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    await fk.observe("y", fk.dist.Normal(z, 0.5), [0.1, 0.2, 0.3])


@fk.program
async def powered():
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    with fk.handlers.scale(scale=2.0):
        await fk.observe("y", fk.dist.Normal(z, 0.5), 0.1)


@fk.program
async def blind():
    await fk.sample("z", fk.dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (weighed, "'judge' is a factor, which is no law"),
        (repeated, r"'y' observes data of shape \(3,\), and a draw of its law has shape \(\): give its parameters"),
        (powered, "'y' is under a scale"),
        (blind, r"blind\(\) observes nothing"),
    ],
)
def test_what_no_data_can_be_drawn_from_is_refused(program, message):
    with pytest.raises(fk.errors.Unsupported, match=message):
        fk.calibrate(program(), fk.SMC(5), 5, 9, bins=5, seed=0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="divide draws \\+ 1 = 100, and 7 does not"):
        fk.calibrate(normal(), fk.SMC(5), bins=7, seed=0)
    with pytest.raises(TypeError, match="takes a bound program"):
        fk.calibrate(normal, fk.SMC(5), seed=0)
    with pytest.raises(TypeError, match="calibrate takes an engine with its settings"):
        fk.calibrate(normal(), fk.SMC, seed=0)
