"""Every engine of the library on a text, an image and a video program: design law 5, with accounting and reproduction.

There is one table of engines and one of programs, and one set of laws. For each pair an engine either runs and keeps
all of the laws, or refuses by name what the program cannot do; the table says which. An engine that is exported and
not in the table fails. Nothing here is statistical: no test can raise a false alarm.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Diffusion,
    Frames,
    JumpDiffusion,
    MaskedDiffusion,
    Mixture,
    Schedule,
    Steering,
    UniformDiffusion,
    anneal,
    begin,
    denoise,
    tilt,
)
from feynkac.inference.base.engine import weaker  # noqa: E402
from feynkac.models.language.stepping.steps import Step as TokenStep  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402
from feynkac.ppl.errors import Unsupported  # noqa: E402
from feynkac.ppl.memory import afresh  # noqa: E402

# -- programs that are watched: what their models and rewards really do ------------------------------------------------


@dataclass
class Watched:
    """A program, and what its models and rewards saw since `clear`.

    ``whole`` tells a whole value from a partial one, ``units`` are those of the cost that are not 0, and ``keys`` the
    keys that a model of tensors was given.
    """

    model: Any
    whole: Any
    units: tuple[str, ...]
    seen: dict[str, int] = field(default_factory=dict)
    keys: list[int] = field(default_factory=list)

    def clear(self):
        self.seen.update(dict.fromkeys(("model_calls", "tokens_in", "tokens_out", "nfe", "reward_calls"), 0))
        self.keys.clear()

    def saw(self, **amounts):
        for unit, amount in amounts.items():
            self.seen[unit] += amount

    def record_keys(self, model):
        """Keep the keys that a model is given from now on."""
        for name, at in (("start", 0), ("advance", 1), ("renoise", 1)):
            method = getattr(model, name, None)
            if method is not None:

                def recorded(*args, method=method, at=at):
                    self.keys += args[at].tolist()
                    return method(*args)

                setattr(model, name, recorded)
        return self


@cache
def text():
    """Three tokens of a language model with random weights, each with a factor."""
    lm = tiny_lm()

    @fk.reward(batched=True)
    def vowels(texts):
        watched.saw(reward_calls=len(texts))
        return [sum(letter in "aeiou" for letter in str(one)[4:]) for one in texts]

    @fk.program
    async def story(lm, judge):
        text = lm.prompt("Once")
        for _ in range(3):
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("vowels", judge(text) / 2.0)
        return text

    units = ("model_calls", "tokens_in", "tokens_out", "reward_calls")
    watched = Watched(story(lm, vowels), lambda value: value is not None, units)

    def called(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        new = ids.numel() if mask is None or mask.dim() != 2 else int(mask[:, -ids.shape[1] :].sum())
        watched.saw(model_calls=1, tokens_in=new)

    lm.model.register_forward_pre_hook(called, with_kwargs=True)
    return watched


@pytest.fixture(autouse=True)
def tokens(monkeypatch):
    """Count the tokens that are drawn."""
    draw = TokenStep.sample_batch

    def sampled(self, requests, keys):
        drawn = draw(self, requests, keys)
        text().saw(tokens_out=sum(len(v.tokens) - len(r.text.tokens) for r, v in zip(requests, drawn.values)))
        return drawn

    monkeypatch.setattr(TokenStep, "sample_batch", sampled)


IMAGE = ("model_calls", "nfe", "reward_calls")


class Network:
    """The exact denoiser of a mixture of small images, on the data or on each next frame; counted."""

    prediction, evaluations = "sample", 1

    def __init__(self, schedule, size):
        rng = np.random.default_rng(0)
        self.law = Mixture([0.2, 0.5, 0.3], rng.normal(size=(3, size)), [0.1, 0.2, 0.3]).denoiser(schedule)
        self.watched = None

    def __call__(self, x, time, condition):
        self.watched.saw(model_calls=1, nfe=len(x))
        found = self.law(x, time, None)
        return found if condition is None else 0.5 * found + 0.5 * condition["past"][:, -1]


def light(images):
    return images.flatten(1)[:, ::3].sum(1) - images.flatten(1)[:, 1]


def scored(fn, watched):
    """A reward that is counted."""

    def reward(data):
        watched().saw(reward_calls=len(data))
        return fn(data)

    return reward


@cache
def image():
    """Images of 3×4 pixels in six steps, steered by a reward."""
    schedule = Schedule.vp(6)
    network = Network(schedule, 12)
    steering = Steering(scored(light, image), 0.3)
    model = Diffusion(network, schedule, (1, 3, 4), steering=steering, dtype=torch.float64)
    network.watched = Watched(model, lambda value: value.shape == (1, 3, 4), IMAGE)
    return network.watched.record_keys(model)


@cache
def steps():
    """Images by a program: a denoising step is a kernel, and a factor comes after each."""
    schedule = Schedule.vp(3)
    network = Network(schedule, 12)
    model = Diffusion(network, schedule, (1, 3, 4), dtype=torch.float64)

    @fk.reward()
    def bright(image):
        network.watched.saw(reward_calls=1)
        return float(image.sum())

    @fk.program
    async def drawn():
        particle = await fk.sample("noise", begin(model))
        while not particle.done:
            particle = await fk.sample("step", denoise(particle))
            await fk.factor("bright", bright(particle.image) / 5.0)
        return particle.image

    network.watched = Watched(drawn(), lambda value: value is not None, IMAGE)
    return network.watched


@cache
def corrected():
    """The same images, annealed by a corrector: what engines find is discretised."""
    schedule = Schedule.vp(6)
    network = Network(schedule, 12)
    plain = Diffusion(network, schedule, (1, 3, 4), dtype=torch.float64)
    model = anneal(plain, 1.2)
    network.watched = Watched(model, lambda value: value.shape == (1, 3, 4), IMAGE[:-1])
    return network.watched.record_keys(model)


@cache
def video():
    """Clips of three frames of 3×4 pixels, each drawn in two steps given the one before, and judged; a step is one."""
    schedule = Schedule.flow(2)
    network = Network(schedule, 12)
    reward = scored(light, video)
    frames = Frames(network, schedule, (3, 4), 3, past=1, reward=reward, scale=0.3, blank=0.0, dtype=torch.float64)
    network.watched = Watched(fk.Blocks(frames, frames.unit), lambda value: len(value) == 3, IMAGE)
    return network.watched.record_keys(frames)


def of_tokens(size, make, fits):
    """Return six tokens from a network with random laws over ``size``, steered by a reward of the likeliest ones."""
    law = torch.tensor(np.random.default_rng(0).normal(size=(6, size)))

    def network(tokens, share):
        watched.saw(model_calls=1, nfe=len(tokens))
        return law + 0.3 * (tokens == 2).sum(1)[:, None, None] * law.roll(1, 0)

    def twos(tokens):
        watched.saw(reward_calls=len(tokens))
        return (tokens == 2).double().sum(1)

    model = make(fk.diffusion.Network(network, "logits"), 6, vocabulary=size, steering=Steering(twos, 0.5))
    watched = Watched(model, fits, IMAGE)
    return watched.record_keys(model)


@cache
def masked():
    """Two of six tokens at a time, from masks."""
    return of_tokens(5, partial(MaskedDiffusion, rule=fk.diffusion.AtRandom(3)), lambda value: 4 not in value)


@cache
def uniform():
    """Six tokens in two blocks of three, from noise that is uniform; some are committed, others drawn again."""
    make = partial(UniformDiffusion, rule=fk.diffusion.BlockRefinement(2, 0.6), block=3)
    return of_tokens(4, make, lambda value: (value >= 0).all())


@cache
def jumps():
    """Four tokens by a jump process in three steps, cooled and tilted by correctors."""
    law = torch.tensor(np.random.default_rng(0).normal(size=(4, 3)))

    def network(tokens, sigma):
        watched.saw(model_calls=1, nfe=len(tokens))
        ratios = law + 0.3 * (tokens == 2).sum(1)[:, None, None] * law.roll(1, 0)
        return torch.exp(-sigma)[:, None, None] * (ratios - ratios.gather(-1, tokens[..., None]))

    def twos(tokens):
        watched.saw(reward_calls=len(tokens))
        return 0.5 * (tokens == 2).double().sum(1)

    model = JumpDiffusion(fk.diffusion.Network(network, "log_ratios"), 4, 3, vocabulary=3)
    watched = Watched(tilt(anneal(model, 1.5), twos), lambda value: (value >= 0).all(), IMAGE)
    return watched.record_keys(watched.model)


def coarse_to_fine(saw):
    """Return three scales of two tokens, from a network with random laws that tells what it saw."""
    law = torch.tensor(np.random.default_rng(0).normal(size=(4, 4)))

    def network(tokens, memory, condition):
        saw(model_calls=1, nfe=len(tokens), tokens_out=2 * len(tokens))
        return law[:2] + 0.3 * (tokens == 2).sum(1)[:, None, None] * law[2:], ()

    return fk.models.ByScale(network, (2, 2, 2), 4, condition=0)


@cache
def tokens_of_images():
    """Images of three scales of two tokens, from a network with random laws; judged after each."""

    def twos(images):
        watched.saw(reward_calls=len(images))
        return (images == 2).sum(1)

    source = coarse_to_fine(lambda **amounts: watched.saw(**amounts))
    model = fk.models.ImageTokens(source, reward=twos, scale=0.5)
    watched = Watched(model, lambda value: (value >= 0).all(), (*IMAGE, "tokens_out"))
    return watched.record_keys(model)


@cache
def drawing():
    """The same images in a program, which judges them after each scale."""
    model = fk.models.ImageTokens(coarse_to_fine(lambda **amounts: watched.saw(**amounts)))

    @fk.program
    async def scales():
        image = fk.models.images.begin(model)
        while not image.done:
            before = (image.tokens == 2).sum()
            image = await fk.sample("scale", fk.models.images.draw(image))
            await fk.factor("twos", 0.5 * float((image.tokens == 2).sum() - before))
        return image.image

    watched = Watched(scales(), lambda value: (value >= 0).all(), ("model_calls", "nfe", "tokens_out"))
    return watched


def shipped(model, shape):
    """A model that ships with the library, its network watched."""
    watched = Watched(model, lambda value: value.shape == shape, IMAGE)
    inner = getattr(model.denoiser, "_network", model.denoiser)
    inner._fn.register_forward_pre_hook(lambda module, args: watched.saw(model_calls=1, nfe=len(args[0])))
    return watched


@cache
def digits():
    """The digits that ship with the library, in three steps, steered to seven by their classifier."""
    reward = scored(fk.diffusion.digit_classifier().log_prob([7]), digits)
    return shipped(fk.diffusion.digits(steps=3, steering=Steering(reward)), (1, 28, 28))


@cache
def bouncing():
    """The clips that ship with the library: two frames in two steps each, scored by their motion."""
    reward = scored(fk.diffusion.bouncing_motion(), bouncing)
    return shipped(fk.diffusion.bouncing(frames=2, steps=2, reward=reward), (2, 24, 24))


PROGRAMS = {"text": text, "image": image, "steps": steps, "corrected": corrected, "video": video, "masked": masked}
SHIPPED = {"digits": digits, "bouncing": bouncing, "uniform": uniform, "jumps": jumps}
SHIPPED |= {"image tokens": tokens_of_images, "drawing": drawing}
LONG = {"corrected", *SHIPPED}

# -- engines -----------------------------------------------------------------------------------------------------------


def answer(value):
    """What is voted on: the last letter of a text, or whether an array is bright."""
    return bool(np.mean(value) > 0) if isinstance(value, np.ndarray) else str(value)[-1:]


NO_NOISE = "NoiseSearch turns the noise that a model begins with"
NO_RENOISE = "PathSearch adds noise again, and .* has no method renoise"

ENGINES: dict[str, tuple[Any, dict[str, str]]] = {
    # name: an instance for a few particles, and what it says of the programs that it refuses. An engine may have
    # several entries: "Name, of a kind".
    "SMC": (fk.SMC(6), {}),
    "SMC, at every step": (fk.SMC(5, ess_threshold=1.0, resampling="ssp", chains=2), {}),
    "ImportanceSampling": (fk.ImportanceSampling(5, chains=2), {}),
    "BestOfN": (fk.BestOfN(6), {}),
    "BestOfN, softly": (fk.BestOfN(5, temperature=0.5), {}),
    "BestOfN, by answer": (fk.BestOfN(5, by=answer), {}),
    "SelfConsistency": (fk.SelfConsistency(6, key=answer), {}),
    "SelfConsistency, weighted": (fk.SelfConsistency(6, key=answer, weighted=True), {}),
    "TreeSampling": (fk.TreeSampling(12, batch=4), {}),
    "TreeSearch": (fk.TreeSearch(12, batch=4), {}),
    "TreeSearch, max": (fk.TreeSearch(12, batch=4, backup="max"), {}),
    "TreeOfFrames": (fk.TreeOfFrames((4, 2), keep=2, judged=(0,)), {}),
    "NoiseSearch": (
        fk.NoiseSearch(3),
        dict.fromkeys(("steps", "video", "masked", "uniform", "jumps", "image tokens", "drawing"), NO_NOISE)
        | {"text": f"{NO_NOISE}.* begins with tuple"},
    ),
    "PathSearch": (
        fk.PathSearch(2, branches=2, first=2, back=1, forward=2),
        dict.fromkeys(
            ("text", "steps", "corrected", "video", "bouncing", "jumps", "image tokens", "drawing"), NO_RENOISE
        ),
    ),
    "SVDD": (fk.SVDD(4, children=3), {}),
    "SVDD, the best": (fk.SVDD(4, children=3, temperature=None), {}),
    "RolloverBudget": (fk.RolloverBudget(3, chains=2), {}),
    "BeamSearch": (fk.BeamSearch(6, width=3), {}),
    "BeamSearch, ahead": (fk.BeamSearch(4, width=2, score="product", lookahead=1, distinct=True), {}),
    "BeamSearch, narrower": (fk.BeamSearch(6, width=2, reduce={1: fk.Reduce(3)}), {}),
    "DVTS": (fk.DVTS(6, width=3, score="min"), {}),
    "Rebase": (fk.Rebase(6, temperature=1.0), {}),
    "AStar": (fk.AStar(60, width=2, score="product"), {}),
    "AStar, falls": (fk.AStar(60, width=3, batch=2, results=2, cost="falls", chains=2), {}),
    "MCTS": (fk.MCTS(3, width=2, batch=2), {}),
    "MCTS, rollouts": (fk.MCTS(4, width=2, rule="puct", value="rollout", moves=False), {}),
    "FirstFinish": (fk.FirstFinish(5, first=2, key=answer, chains=2), {}),
    "AdaptiveConsistency": (fk.AdaptiveConsistency(8, batch=4, key=answer), {}),
    "AdaptiveBestOfN": (fk.AdaptiveBestOfN(8, threshold=1.0, batch=4, prune={0: 0.5}), {}),
    "ParticleFilter": (fk.ParticleFilter(5), {}),
    "ParticleFilter, as its_hub": (fk.ParticleFilter(5, compat="its_hub"), {}),
    "EntropicParticleFilter": (fk.EntropicParticleFilter(5, max_steps=8), {}),
    "EntropicParticleFilter, looking ahead": (fk.EntropicParticleFilter(5, max_steps=8, look_ahead=True), {}),
    "EntropicParticleFilter, as published": (fk.EntropicParticleFilter(5, max_steps=8, exact=False), {}),
    "SMCSteer": (fk.SMCSteer(4, beam=2), {}),
    "LookAheadSMC": (fk.LookAheadSMC(3, rollouts=2, ahead=2), {}),
    "RejectionSMC": (fk.RejectionSMC(3, trials=24, all_dead="zero"), {}),
    "SMC, with a move": (fk.SMC(4, ess_threshold=1.0, move=fk.SuffixMH(1)), {}),
    "ParticleGibbs": (fk.ParticleGibbs(4, sweeps=4), {}),
    "ParticleGibbs, with ancestors": (fk.ParticleGibbs(4, sweeps=4, ancestor_sampling=True), {}),
    "SuffixMH": (fk.SuffixMH(8, chains=2), {}),
    "SuffixMH, powered": (fk.SuffixMH(8, power=2.0, block=1), {}),
    "ParallelTempering": (fk.ParallelTempering((1.0, 3.0), sweeps=6), {}),
    "MCMC": (fk.MCMC(fk.Sweep(fk.SuffixMH(1), fk.SuffixMH(1)), draws=5, warmup=2, chains=2), {}),
    "TemperedSMC": (fk.TemperedSMC(4, fk.SuffixMH(1), moves=1), {}),
    "TemperedSMC, on a ladder": (fk.TemperedSMC(4, fk.SuffixMH(1), moves=2, ladder=(0, 0.4, 1), chains=2), {}),
    "WasteFreeSMC": (fk.WasteFreeSMC(6, fk.SuffixMH(1), length=2), {}),
    "PersistentSampling": (fk.PersistentSampling(4, fk.SuffixMH(1), moves=1), {}),
    "PowerSampling": (fk.PowerSampling(3, power=2.0, moves=2), {}),
    "PowerSMC": (fk.PowerSMC(6, power=2.0, bridge=2), {}),
    "NestedSampling": (fk.NestedSampling(5, fk.SuffixMH(1), moves=2, delete=2), {}),
}


def test_every_engine_of_the_library_is_in_the_table():
    exported = {name: getattr(fk, name) for name in fk.__all__}
    engines = {name for name, one in exported.items() if inspect.isclass(one) and {"run", "guarantee"} <= set(dir(one))}
    engines.remove("Engine")  # the contract of them all
    assert engines >= {"SMC", "TreeSampling"}
    assert {name.split(",")[0] for name in ENGINES} == engines
    assert all(type(engine).__name__ == name.split(",")[0] for name, (engine, _) in ENGINES.items())
    assert all(set(refused) <= {*PROGRAMS, *SHIPPED} for _, refused in ENGINES.values())


UNBIASED = (
    "SMC PowerSMC RejectionSMC ImportanceSampling ParticleFilter EntropicParticleFilter SMCSteer LookAheadSMC "
    "TreeSampling"
)
CONSISTENT = (
    "ParticleGibbs SuffixMH ParallelTempering PowerSampling MCMC "
    "NestedSampling TemperedSMC WasteFreeSMC PersistentSampling"
)
BY_REWARD = (
    "SMC PowerSMC ParticleFilter EntropicParticleFilter SMCSteer LookAheadSMC RejectionSMC SVDD RolloverBudget "
    "TreeSampling TreeSearch ParticleGibbs SuffixMH ParallelTempering PowerSampling MCMC "
    "NestedSampling TemperedSMC WasteFreeSMC PersistentSampling"
)
MARKOV = "ParticleGibbs SuffixMH ParallelTempering MCMC"
BY_SETTINGS = {"TemperedSMC, on a ladder": "unbiased"}
NOT_EXACT = ("ParticleFilter, as its_hub", "EntropicParticleFilter, as published")


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_promises_more_or_less_than_was_shown_of_it(name):
    """Its promise is written here once more, so that it is not changed without a look at the laws that tests check."""
    kind = name.split(",")[0]
    promise = "unbiased" if kind in UNBIASED.split() else "consistent" if kind in CONSISTENT.split() else "heuristic"
    promise = BY_SETTINGS.get(name, promise)
    assert ENGINES[name][0].guarantee == ("heuristic" if name in NOT_EXACT else promise)


@cache
def best_of_all(name):
    """Runs of an engine on a die that is thrown twice, the second throw decisive, and what they call the best."""

    @fk.program
    async def dice():
        total = 0
        for weight in (3.0, 0.1):
            face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
            total += weight * face
            await fk.factor("G", weight * face)
        return total

    return [fk.infer(dice(), ENGINES[name][0], seed=seed) for seed in range(5)]


@pytest.mark.parametrize("name", [name for name in ENGINES if "text" not in ENGINES[name][1]])
def test_the_best_is_told_by_what_suits_the_engine(name):
    """By the reward of the whole run, but where an engine's own choice is another: a vote, or a score of its own."""
    kind = name.split(",")[0]
    by_reward = kind in BY_REWARD.split() and name != "ParticleFilter, as its_hub"
    own = {
        "ParticleFilter, as its_hub", "BestOfN, by answer", "SelfConsistency", "SelfConsistency, weighted",
        "FirstFinish", "AdaptiveConsistency", "BeamSearch, ahead", "BeamSearch, narrower", "DVTS", "AStar, falls",
        "TreeOfFrames", "BeamSearch", "AdaptiveBestOfN",
    }  # fmt: skip
    for posterior in best_of_all(name):
        assert posterior.ranking == ("reward" if by_reward else "weight")
        assert posterior.serial == (kind in MARKOV.split())
        if name not in own:
            rewards = np.where(posterior.complete, posterior.log_potential, -np.inf)
            assert posterior.best() == posterior.values[int(rewards.argmax())]
        told = "vote" if posterior._answers is not None else posterior.ranking
        assert f"best by {told}" in posterior.summary()


DIES = ("RejectionSMC", "digits")
"""A classifier's log-probabilities leap by far more than a child is worth trying again for: none is accepted."""


def pairs(programs):
    """Pair each engine with the programs that it runs; those that take longest are for the long tests."""
    both = [(name, program) for name in ENGINES for program in programs]
    kept = [pair for pair in both if pair[1] not in ENGINES[pair[0]][1] and pair != DIES]
    return [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] in LONG else []) for pair in kept]


REFUSED = [(name, program) for name in ENGINES for program in ENGINES[name][1]]


def run(name, program, **settings):
    """Infer, with nothing known of other runs."""
    watched = (PROGRAMS | SHIPPED)[program]()
    watched.clear()
    with afresh():
        return watched, fk.infer(watched.model, ENGINES[name][0], seed=5, **settings)


def used(cost):
    return {unit: getattr(cost, unit) for unit in ("model_calls", "tokens_in", "tokens_out", "nfe", "reward_calls")}


def same(one, other):
    """Assert that two posteriors are identical, but for the time they took."""
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one.values, other.values):
        np.testing.assert_array_equal(*(v if isinstance(v, np.ndarray) else str(v) for v in (mine, theirs)))
    np.testing.assert_array_equal(one.log_weights, other.log_weights)
    np.testing.assert_array_equal(one.complete, other.complete)
    np.testing.assert_array_equal(one.log_evidence, other.log_evidence)
    assert used(one.cost) == used(other.cost)
    for mine, theirs in zip(one.chains, other.chains, strict=True):
        for step, again in zip(mine.steps, theirs.steps, strict=True):
            np.testing.assert_array_equal(step.ancestors, again.ancestors)
            np.testing.assert_array_equal(step.log_potential, again.log_potential)
    facts = ("guarantee", "engine", "seed", "stopped")
    assert [getattr(one, fact) for fact in facts] == [getattr(other, fact) for fact in facts]


@pytest.mark.parametrize(("name", "program"), pairs(PROGRAMS | SHIPPED))
def test_an_engine_runs(name, program, tmp_path):
    watched, posterior = run(name, program)
    engine = ENGINES[name][0]
    # What it found.
    assert len(posterior.values) == len(posterior) > 0
    assert len(posterior.chains) == engine.chains
    weights = posterior.log_weights
    assert (weights < np.inf).all()
    assert np.isfinite(weights).any()
    assert posterior.probabilities.sum() == pytest.approx(1.0)
    assert math.isfinite(posterior.log_evidence) or math.isnan(posterior.log_evidence)
    assert not (math.isnan(posterior.log_evidence) and posterior.guarantee == "unbiased")
    assert posterior.best() is not None
    assert posterior.steps
    # What it promises, and what it finished.
    assert posterior.guarantee == weaker(engine.guarantee, getattr(watched.model, "guarantee", "unbiased"))
    assert posterior.complete.all()
    assert all(watched.whole(value) for value in posterior.values)
    assert posterior.stopped is None
    # Law 6: what it cost is what the models and rewards saw.
    assert used(posterior.cost) == watched.seen
    assert {unit for unit, amount in watched.seen.items() if amount} == set(watched.units)
    # Law 7: no key is used twice, the same seed gives the identical posterior, and a file keeps it.
    assert len(set(watched.keys)) == len(watched.keys)
    of_arrays = ("image", "corrected", "video", "masked", "uniform", "jumps", "image tokens")
    assert bool(watched.keys) == (program in of_arrays)
    same(posterior, run(name, program)[1])
    posterior.save(tmp_path / "kept")
    same(posterior, fk.Posterior.load(tmp_path / "kept"))


@pytest.mark.parametrize(("name", "program"), REFUSED)
def test_an_engine_refuses_by_name(name, program):
    with pytest.raises(Unsupported, match=ENGINES[name][1][program]) as refusal:
        run(name, program)
    assert type(ENGINES[name][0]).__name__ in str(refusal.value)


@pytest.mark.parametrize(("name", "program"), pairs(PROGRAMS))
def test_a_budget_stops_an_engine_and_keeps_what_there_is(name, program, tmp_path):
    whole = run(name, program)[1].cost
    for unit in PROGRAMS[program]().units:
        if unit == "tokens_in":  # has no limit
            continue
        limit, spent = unit.removesuffix("_out"), getattr(whole, unit)
        watched, posterior = run(name, program, budget=fk.Budget(**{limit: (spent + 1) // 2}))
        cost = getattr(posterior.cost, unit)
        assert posterior.stopped == limit
        assert (spent + 1) // 2 <= cost < spent
        assert used(posterior.cost) == watched.seen
        assert (posterior.log_weights < np.inf).all()
        assert len(posterior) > 0
        if program in ("text", "steps", "video"):  # of those, one sees by the value whether it is whole
            assert posterior.complete.tolist() == [watched.whole(value) for value in posterior.values]
        posterior.save(tmp_path / "part")
        same(posterior, fk.Posterior.load(tmp_path / "part"))


@pytest.mark.parametrize(("name", "program"), pairs(PROGRAMS))
def test_problems_solved_together_share_batches_and_pay_their_own(name, program):
    """The first of two problems has the answer that it has alone; their costs add up to what was seen."""
    watched = PROGRAMS[program]()
    alone = run(name, program)[1]
    watched.clear()
    with afresh():
        one, other = fk.infer([watched.model] * 2, ENGINES[name][0], seed=5)
    assert [str(value) for value in one.values] == [str(value) for value in alone.values]
    np.testing.assert_allclose(one.log_weights, alone.log_weights, atol=1e-4)
    for unit, amount in watched.seen.items():
        total = getattr(one.cost, unit) + getattr(other.cost, unit)
        assert total >= amount if unit == "model_calls" else total == amount  # a call is each one's that took part
        if unit in ("tokens_out", "nfe"):  # of the others it may share some with the other problem
            assert getattr(one.cost, unit) == getattr(alone.cost, unit)
