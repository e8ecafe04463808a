"""Runs in processes of their own, which kill themselves on the way: one process that forks for each of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from whole_steps import WholeSteps

import feynkac as fk


@fk.reward(kind="log_weight")
def short(text):
    return -0.1 * len(str(text))


def look_up(string):
    return {"length": len(string), "pair": (1.5, None)}


@fk.program
async def story(lm, steps=3):
    text = lm.prompt("Once upon")
    for _ in range(steps):
        text = await fk.sample("words", lm.tokens(text, 2))
        found = await fk.call("look up", look_up, str(text))
        await fk.factor("short", short(text) * (1 + 0.01 * found["length"]))
    return text


ENGINES = {
    "smc": fk.SMC(4),
    "gibbs": fk.ParticleGibbs(4, sweeps=3),
    "beam": fk.BeamSearch(6, 2),
    "best": fk.BestOfN(5),
    "mcmc": fk.SuffixMH(8),
    "tempered": fk.TemperedSMC(5, fk.SuffixMH(1)),
    "chains": fk.SMC(4, chains=2),
}


class Unseeded(WholeSteps):
    """A server without seeds: what it draws differs from process to process."""

    def draw(self, runs, keys, tally):
        super().draw(runs, keys ^ np.uint64(os.getpid()), tally)


class Mortal(WholeSteps):
    """Kills its process when it is asked for the ``at``-th time."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def draw(self, *args):
        self._live(super().draw, args)

    def forced(self, *args, onward=False):
        return self._live(super().forced, args)

    def _live(self, ask, args):
        if len(self.requests) + 1 >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(*args)


class Forge:
    """Starts such runs."""

    def __init__(self):
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import dying; dying.serve()"
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)

    def _ask(self, *jobs):
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def killed(self, path, engine, at):
        """Whether a run dies when its model is asked for the ``at``-th time."""
        return self._ask([str(path), engine, at]) == [-signal.SIGKILL]

    def together(self, path, n):
        """Make a run in n processes at once, with a model that draws otherwise in each; return what came of it."""
        files = [f"{path}.{i}" for i in range(n)]
        assert self._ask(*([str(path), file, None] for file in files)) == [0] * n
        return [Path(file).read_text() for file in files]

    def close(self):
        with self._process:  # which closes its pipes, and waits
            pass


def unseeded(path, lm):
    """The tokens of a run whose model needs its journal to agree with itself."""
    return repr([text.tokens for text in fk.infer(story(lm, 5), fk.SMC(6), seed=0, journal=path).values])


def serve():
    """Fork for each job of a line, and tell how the children ended."""
    fk.infer(story(WholeSteps()), fk.SMC(2), seed=0)  # what is imported late is imported once
    for line in sys.stdin:
        children = [_fork(*job) for job in json.loads(line)]
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ends), flush=True)


def _fork(path, what, at):
    child = os.fork()
    if child:
        return child
    try:
        if at is None:
            Path(what).write_text(unseeded(path, Unseeded()))
        else:
            fk.infer(story(Mortal(at)), ENGINES[what], seed=0, journal=path)
        os._exit(0)
    finally:
        os._exit(1)
