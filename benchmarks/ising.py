"""Do the weights of discrete Feynman–Kac correctors pay? Lattices of spins, cooled, at equal calls of the network.

    python benchmarks/ising.py --short     # seconds
    python benchmarks/ising.py             # two minutes on one core
    python benchmarks/ising.py --plot docs/claims/ising.png

The claim (discrete Feynman–Kac correctors, arXiv:2601.10403): a network trained at one temperature samples another, if
particles are weighted and resampled on the way. The lattices are periodic, with E = −Σ ss′ − h·Σ s over two bonds a
site and h = .1, so that nothing is symmetric; the networks are exact, at β = .30, by enumeration. Cooling by a power is
`anneal`, in each of the forms that the library has, and in two that it has not:

- "tokens": `JumpDiffusion`, noise draws spins anew; "masks": `MaskedDiffusion` with `Ancestral`; T steps of either.
  Weights of "tokens" look back from where a step led, those of "masks" cannot.
- "tokens, frozen" and "masks, frozen": rates as in the paper (Σβ times those of the forward process; masks with the
  laws α^βN of β copies), frozen over a step, each position moving with 1 − exp(−rate·dt), the weight growing by dt.
- "any order": `MaskedDiffusion` with `InOrder`, one spin a step, so that T is 9; it has as many more particles.

Each is run "with" weights, by SMC(N) with its settings as they are, and "without": the same jumps, all particles
counting alike. A run takes N·T evaluations of the network, N = 4,000; the error is that of the energy per site, over
the seeds, as root mean square.

The rule of the verdict:

1. "energy", 3×3, to β = .60, T = 50, 4 seeds: the error without weights is at least 3 times that with weights, at as
   many evaluations. Holds for "tokens", for "masks" and for "any order" each on its own.
2. "evidence", 4×4, to β = .35, N = 2,000, 3 seeds, "tokens": log Ẑ is within .01 of log Σ p^(7/6) in the mean, at T =
   25 and at T = 50; holds if both are so. "tokens, frozen" is beside it.

T was taken with a look at the exact error of "tokens" on 3×3, which tests compute, and at runs of T = 9 by weights that
did not look back. Nothing else was tuned. Rows of T = 9 and 25, and those that are frozen, have 2 seeds
or more: they are for the picture.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common.records import Records, asked

import feynkac as fk
from feynkac.diffusion import Ancestral, InOrder, JumpDiffusion, MaskedDiffusion, TokenTable, anneal
from feynkac.diffusion.jumps.generator import JumpProduct
from feynkac.diffusion.jumps.masked import MaskedJumps
from feynkac.diffusion.latents import replace_fields

FIELD, WARM = 0.1, 0.30
FORMS = {
    "tokens": "tab:blue",
    "masks": "tab:green",
    "any order": "black",
    "tokens, frozen": "tab:orange",
    "masks, frozen": "tab:red",
}
RULED = ("tokens", "masks", "any order")


def energies(side: int) -> Any:
    """Return the energy of each state of a lattice, (2^N,)."""
    spins = np.array(list(itertools.product((-1, 1), repeat=side * side))).reshape(-1, side, side)
    bonds = spins * (np.roll(spins, 1, 1) + np.roll(spins, 1, 2))
    return -(bonds + FIELD * spins).sum((1, 2))


def law(energy: Any, beta: float) -> Any:
    """Return the probability of each state, (2^N,)."""
    weight = np.exp(-beta * (energy - energy.min()))
    return weight / weight.sum()


class FrozenTokens(JumpProduct):
    """One power of a jump process whose rates and growth are frozen over a step."""

    def look(self, latents: Any) -> Any:
        n, size = len(latents), self.vocabulary
        step = torch.zeros(*latents.x.shape, size, dtype=torch.float64)
        if not latents.done.any():
            beta, levels = self.factors[0].beta, self.levels
            alone = replace(latents, condition=None)
            rho = self.ratios(self.factors[0].denoiser, alone, levels[latents.step], np.arange(n))
            same = torch.nn.functional.one_hot(latents.x, size) > 0
            rate, back = (torch.where(same, 0.0, beta / size * one) for one in (rho**beta, rho))
            dt = torch.as_tensor(levels[latents.step] - levels[latents.step + 1])[:, None]
            total, growth = rate.sum(-1), (rate - back).sum(-1)
            moves = torch.log(-torch.expm1(-total * dt))[..., None] + (rate / total[..., None]).log()
            step = torch.where(same, -(total * dt)[..., None], moves) + (growth * dt)[..., None]
        return replace_fields(latents, law=step, estimate=latents.x, value=torch.zeros(n, dtype=torch.float64))

    def laws(self, latents: Any) -> Any:
        return latents.fields["law"]

    def hindsight(self, latents: Any, there: Any) -> Any:
        return torch.zeros(len(latents), dtype=torch.float64)


class FrozenMasks(MaskedJumps):
    """One power of a masked model whose rates and growth are frozen over a step, with the masks of β copies."""

    def laws(self, site: Any, mix: Any) -> Any:
        beta, steps = self.factors[0].beta, self.steps
        t = torch.as_tensor(1.0 - site.at / steps)[:, None]
        total = beta * (1.0 - t) ** (beta - 1.0) / t**beta * mix.logsumexp(-1).exp()
        stays = torch.where(t * steps < 1.5, -math.inf, -total / steps)  # the last step leaves no mask
        moves = torch.log(-torch.expm1(stays))[..., None] + mix.log_softmax(-1)
        return torch.where(self.words, moves, stays[..., None]) + ((total - beta / t) / steps)[..., None]


def model(form: str, p: Any, power: float, steps: int) -> Any:
    """Return a law over spins to a power, in one of the forms."""
    length = int(np.log2(len(p)))
    table = TokenTable(p.reshape((2,) * length))
    if form.startswith("tokens"):
        made = anneal(JumpDiffusion(table.ratios(), length, steps, vocabulary=2), power)
        return FrozenTokens(made, made.factors) if form.endswith("frozen") else made
    rule = InOrder() if form == "any order" else Ancestral(steps)
    made = anneal(MaskedDiffusion(table.conditionals(), length, rule, vocabulary=3), power)
    return FrozenMasks(made, made.factors) if form.endswith("frozen") else made


def measured(form: str, side: int, cold: float, steps: int, particles: int, weighted: bool, seed: int) -> Any:
    """Return the mean energy per site of a run, log Ẑ, and what it took."""
    energy = energies(side)
    made = model(form, law(energy, WARM), cold / WARM, steps)
    n = particles * steps // made.steps
    found = fk.infer(made, fk.SMC(n) if weighted else fk.ImportanceSampling(n), seed=seed)
    codes = np.stack(found.values) @ (2 ** np.arange(side * side)[::-1])
    shares = found.probabilities if weighted else np.full(n, 1 / n)
    evidence = float(found.log_evidence) if weighted else None
    return {"energy": float(shares @ energy[codes]) / side**2, "evidence": evidence, "nfe": int(found.cost.nfe)}


def run(records: Records, side: int, cold: float, particles: int, steps: tuple[int, ...], seeds: int) -> None:
    """Run what has no record yet."""
    forms = FORMS if side == 3 else [form for form in FORMS if form.startswith("tokens")]
    for count, form, weighted, seed in itertools.product(steps, forms, (True, False), range(seeds)):
        if side == 3 and seed > 1 and (form not in RULED or count < max(steps)):
            continue
        row = {"side": side, "form": form, "weighted": weighted, "steps": count, "seed": seed}
        if row in records or (side == 4 and not weighted):
            continue
        records.add(row | measured(form, side, cold, count, particles, weighted, seed))
        print(row, flush=True)


def of(records: Records, side: int, form: str, weighted: bool, steps: int, name: str) -> Any:
    """Return what the seeds of one row found."""
    key = (side, form, weighted, steps)
    rows = [r for r in records.rows if (r["side"], r["form"], r["weighted"], r["steps"]) == key]
    return np.array([r[name] for r in rows])


def error(found: Any, truth: float) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean((found - truth) ** 2)))


def verdicts(records: Records, steps: tuple[int, ...]) -> dict[str, str]:
    """Print what each part found, and return the verdicts by the rule."""
    energy, said = energies(3), {}
    truth = float(law(energy, 0.60) @ energy) / 9
    print(f"1. error of the energy per site, {truth:.4f}, at β = .60: without weights, with them, and their ratio")
    for form, count in itertools.product(FORMS, steps):
        without, weighed = (error(of(records, 3, form, w, count, "energy"), truth) for w in (False, True))
        calls = int(of(records, 3, form, True, count, "nfe").mean())
        print(f"   {form:15} T={count:3} {calls:9,} evaluations: {without:.4f} {weighed:.4f}  {without / weighed:.1f}")
        if form in RULED and count == steps[-1]:
            said[form] = "holds" if without >= 3 * weighed else "fails"
    energy = energies(4)
    exact = float(np.log((law(energy, WARM) ** (0.35 / WARM)).sum()))
    print(f"2. log Ẑ on 4×4, {exact:.4f}: mean, and its error")
    off = {}
    for form, count in itertools.product(("tokens", "tokens, frozen"), (25, 50)):
        found = of(records, 4, form, True, count, "evidence")
        if len(found):
            off[form, count] = abs(found.mean() - exact)
            spread = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
            print(f"   {form:15} T={count:3} {found.mean():.4f} ± {spread:.4f}  {found.mean() - exact:+.4f}")
    if ("tokens", 50) in off:
        said["evidence"] = "holds" if max(off["tokens", count] for count in (25, 50)) <= 0.01 else "fails"
    print(said)
    return said


def plot(records: Records, steps: tuple[int, ...], path: str) -> None:
    """Draw the error of the energy against steps, with and without weights."""
    import matplotlib.pyplot as plt

    energy = energies(3)
    truth = float(law(energy, 0.60) @ energy) / 9
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), constrained_layout=True, sharey=True)
    for axis, weighted, title in zip(axes, (False, True), ("without weights", "with weights")):
        for form, colour in FORMS.items():
            errors = [error(of(records, 3, form, weighted, count, "energy"), truth) for count in steps]
            axis.loglog(steps, errors, color=colour, marker="o", markersize=4, label=form)
        axis.set_xticks(steps, [str(count) for count in steps])
        axis.minorticks_off()
        axis.set(title=title, xlabel="evaluations, in 4,000")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("error of the energy per site")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    arguments, records = asked(__doc__, "ising", ("side", "form", "weighted", "steps", "seed"), argv)
    torch.set_num_threads(1)
    steps = (9,) if arguments.short else (9, 25, 50)
    if not arguments.short:
        run(records, 4, 0.35, 2_000, (25, 50), 3)
    run(records, 3, 0.60, 40 if arguments.short else 4_000, steps, 1 if arguments.short else 4)
    verdicts(records, steps)
    if arguments.plot:
        plot(records, steps, arguments.plot)


if __name__ == "__main__":
    main()
