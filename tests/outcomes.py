"""Estimators, every outcome of which is enumerated: what is drawn is chosen, and all choices are gone through."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import feynkac as fk
from feynkac.inference.base.engine import Move, Start


class Choices:
    """One sequence of choices, and the probability of making it."""

    def __init__(self, prefix):
        self.prefix, self.made, self.options, self.probability = list(prefix), [], [], 1.0

    def choose(self, probabilities):
        """Return which of some outcomes comes about."""
        open_ = [i for i, p in enumerate(probabilities) if p > 0]
        at = len(self.made)
        i = self.prefix[at] if at < len(self.prefix) else open_[0]
        self.made.append(i)
        self.options.append(open_)
        self.probability *= probabilities[i]
        return i


def outcomes(run):
    """Yield the probability and the result of every sequence of choices that ``run(choose)`` may make."""
    waiting = [[]]
    while waiting:
        choices = Choices(waiting.pop())
        result = run(choices.choose)
        yield choices.probability, result
        for at in range(len(choices.prefix), len(choices.made)):
            waiting += [[*choices.made[:at], i] for i in choices.options[at] if i != choices.made[at]]


@dataclass(frozen=True)
class Words:
    """Particles as strings."""

    texts: tuple
    ends: int

    @property
    def done(self):
        return np.array([len(text) == self.ends or text.endswith("z") for text in self.texts])

    def __len__(self):
        return len(self.texts)


class Speller:
    """Letters with laws, log-potentials and log-twists by text, each chosen; a text ends at a length, or with a z."""

    def __init__(self, choose, law, log_g, log_psi, ends):
        self.choose, self.law, self.log_g, self.log_psi, self.ends = choose, law, log_g, log_psi, ends
        self.last = None

    def start(self, keys, given=None):
        return self._step([""] * len(keys))

    def advance(self, state, keys, given=None):
        return self._step(state.texts)

    def _over(self, text):
        return len(text) == self.ends or text.endswith("z")

    def _step(self, before):
        texts, log_p, log_g = [], [], []
        for text in before:
            law = {"": 1.0} if self._over(text) else self.law(text)  # what is over stays as it is
            letter = list(law)[self.choose(list(law.values()))]
            texts.append(text + letter)
            log_p.append(math.log(law[letter]))
            log_g.append(self.log_g(text + letter) if letter else 0.0)
        state = Words(tuple(texts), self.ends)
        psi = np.array([0.0 if self._over(text) else self.log_psi(text) for text in texts])
        self.last = list(zip(before, texts, log_g, psi))
        choices, yes = [(text[-1],) for text in texts], np.ones(len(texts), bool)
        return fk.Advance(state, choices, np.array(log_p), np.array(log_p), np.array(log_g), psi, state.done, yes)

    def select(self, state, index):
        return Words(tuple(state.texts[i] for i in index), self.ends)

    def concat(self, states):
        return Words(sum((state.texts for state in states), ()), self.ends)

    def exact(self, power=1.0):
        """Return p^α·∏G of every text."""
        found, open_ = {}, {"": 0.0}
        while open_:
            text, log_w = open_.popitem()
            for letter, p in self.law(text).items():
                after, gain = text + letter, log_w + power * math.log(p) + self.log_g(text + letter)
                (found if len(after) == self.ends or letter == "z" else open_)[after] = gain
        return {text: math.exp(log_w) for text, log_w in found.items()}


def estimate(engine, model, seed=0):
    """Run an engine on a model; return the mass of each text in Ẑ."""
    run, answer, last = engine.run(model, fk.keys.root(seed)), None, None
    while True:
        try:
            asked = run.send(answer)
        except StopIteration:
            break
        if isinstance(asked, Start):
            answer = model.start(asked.keys)
        elif isinstance(asked, Move):
            answer = model.advance(asked.state, asked.keys)
        else:
            last, answer = asked, None
    masses = {}
    for text, log_w in zip(last.state.texts, last.log_weights):
        masses[text] = masses.get(text, 0.0) + math.exp(log_w) / len(last.log_weights)
    return masses


def expected(engine, model):
    """Return E[Ẑ·W(x)] of each text, E[Ẑ²] and how many outcomes there are; ``model`` makes one that chooses."""
    mean, second, count, total = {}, 0.0, 0, 0.0
    for probability, masses in outcomes(lambda choose: estimate(engine, model(choose))):
        count, total = count + 1, total + probability
        second += probability * sum(masses.values()) ** 2
        for text, mass in masses.items():
            mean[text] = mean.get(text, 0.0) + probability * mass
    assert math.isclose(total, 1.0, abs_tol=1e-9)
    return {text: mass for text, mass in mean.items() if mass}, second, count
