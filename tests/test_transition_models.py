"""Models that are no transformers with a plain cache: memories across turns, and video without an end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl import cost, keys
from feynkac.ppl.model import Draws

SLOTS, WORDS = 3, 5


class Reactive:
    """A scripted model with a memory of fixed size: a turn reads the message and the memory, and leaves another."""

    def __init__(self):
        self.read = 0
        self.law = np.random.default_rng(0).dirichlet(np.ones(WORDS), (SLOTS, WORDS))

    def turn(self, memory, message):
        return Turn(self, memory, message)


@dataclass(frozen=True)
class Turn:
    """A request for a reply, and the memory after it."""

    model: Reactive
    memory: tuple[int, ...]
    message: tuple[int, ...]

    @property
    def batch_key(self):
        return self.model

    def sample_batch(self, requests, ks):
        values, logs = [], []
        for i, one in enumerate(requests):
            u = keys.uniform(ks[[i]], 1)[0, 0]
            law = self.model.law[sum(one.memory) % SLOTS, one.message[-1] % WORDS]
            word = int(np.searchsorted(law.cumsum(), u, side="right"))
            values.append((word, (*one.memory[1:], word)))
            logs.append(np.log(law[word]))
            self.model.read += len(one.message)
        cost.charge(model_calls=1)
        return Draws(values, np.array(logs))

    def support(self):
        return [(word, (*self.memory[1:], word)) for word in range(WORDS)]

    def log_prob_batch(self, requests, values):
        laws = [one.model.law[sum(one.memory) % SLOTS, one.message[-1] % WORDS] for one in requests]
        return np.array([np.log(law[word]) for law, (word, _) in zip(laws, values)])


@fk.program
async def talk(model, turns, length):
    async def turn(memory, t):
        word, memory = await fk.sample("turn", model.turn(memory, (t,) * length))
        await fk.factor("G", 0.3 * word)
        return memory, word

    return await fk.scan(turn, (0,) * SLOTS, range(turns), compiled=False)


def test_ten_turns_of_ten_tokens_read_a_hundred_positions():
    """All that was said, read again at each turn, would be 10 + 20 + … + 100 = 550."""
    model = Reactive()
    fk.infer(talk(model, 10, 10), fk.ImportanceSampling(1), seed=0)
    assert model.read == 100


@pytest.mark.slow
def test_a_resampled_particle_takes_its_own_memory_along():
    exact = fk.enumerate_program(talk(Reactive(), 4, 1))
    model = Reactive()
    posterior = fk.infer([talk(model, 4, 1)] * 300, fk.SMC(8, ess_threshold=1.0), seed=0)
    estimates = np.exp([one.log_evidence for one in posterior])
    z = (estimates.mean() - np.exp(exact.log_evidence)) / (estimates.std(ddof=1) / np.sqrt(len(estimates)))
    assert abs(z) < 4.26  # 2e-5
    for one in posterior[:20]:
        for memory, words in one.values:
            assert memory == words[-SLOTS:]


@pytest.mark.parametrize("sinks", [0, 1])
def test_what_a_particle_of_a_stream_holds_does_not_grow(sinks):
    pytest.importorskip("torch")
    asked, earliest = [], []

    def network(x, time, condition):
        asked.append(condition["past"].shape)
        earliest.append(condition["past"][:, 0].mean().item())
        return condition["past"][:, -1] / 2

    denoiser = fk.diffusion.Network(network, "sample")
    video = fk.diffusion.Frames(denoiser, fk.diffusion.Schedule.flow(2), (2,), frames=4, past=3, blank=1.0)

    @fk.program
    async def stream(length):
        async def step(kept, t):
            first, last = kept
            assert len(first) + len(last) == min(t, video.past)
            frame = await fk.sample("frame", video.frame((*first, *last)))
            await fk.factor("G", float(frame.mean()))
            first, last = ((*first, frame), last) if len(first) < sinks else (first, (*last, frame))
            return (first, last[-(video.past - sinks) :]), float(frame[0])

        (first, last), means = await fk.scan(step, ((), ()), range(length), compiled=False)
        assert len(first) + len(last) == min(length, video.past)
        assert len(first) == sinks
        return means

    for length in (3, 12):
        for means in fk.infer(stream(length), fk.SMC(3, ess_threshold=1.0), seed=0).values:
            assert np.allclose(means, 0.5 ** np.arange(1, length + 1))
    assert {shape[1:] for shape in asked} == {(3, 2)}
    assert earliest[-1] == 0.5 ** (1 if sinks else 9)  # the last of 12 frames is drawn from the first, or the ninth


def test_within_its_window_a_stream_is_the_clip():
    pytest.importorskip("torch")
    whole = fk.diffusion.bouncing(frames=3, steps=2)

    @fk.program
    async def clip():
        frames = []
        for _ in range(3):
            frames = [*frames, await fk.sample("frame", whole.frame(frames))]
        return np.stack(frames)

    window = fk.diffusion.bouncing(frames=3, steps=2)

    @fk.program
    async def stream():
        async def step(kept, t):
            frame = await fk.sample("frame", window.frame(kept))
            return (*kept, frame)[-window.past :], frame

        _, frames = await fk.scan(step, (), range(3), compiled=False)
        return np.stack(frames)

    one, other = (fk.simulate(model, seed=1).value for model in (clip(), stream()))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
