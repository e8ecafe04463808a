"""What our loop costs over a bare loop of diffusers: CPU time of SMC without a reward, K particles, in one run.

    python benchmarks/diffusion_overhead.py

Both take the same DDPM steps with the same network, and take turns; the ratio is the median over the turns of ours to
the bare one beside it. The second row has a network that does nothing, so that what is left is the loops themselves;
what it says is the steadier on a busy machine. Ours also keeps the history, the estimate of the data and exact
densities, and resamples when asked to.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel

import feynkac as fk
from feynkac.diffusion import DiffusersNetwork, Diffusion

SIZE = 32


def unet(channels: list[int]) -> UNet2DModel:
    """Build the architecture of DDPM for 32×32 images (Ho et al. 2020), attention at 16×16, with random weights."""
    torch.manual_seed(0)
    blocks = ["DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * (len(channels) - 2)]
    network = UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=tuple(channels),
        down_block_types=tuple(blocks),
        up_block_types=tuple(block.replace("Down", "Up") for block in reversed(blocks)),
    )
    return network.requires_grad_(False).eval()


@torch.no_grad()
def bare(network, scheduler, particles: int, steps: int, seed: int):
    """The loop of DDPMPipeline."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(particles, 3, SIZE, SIZE, generator=generator)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        out = network(x, t)
        x = scheduler.step(getattr(out, "sample", out), t, x, generator=generator).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).numpy()


def ours(network, scheduler, particles: int, steps: int, seed: int):
    denoiser = DiffusersNetwork(network, scheduler, steps)
    model = Diffusion(denoiser, denoiser.schedule, (3, SIZE, SIZE), decode=lambda x: (x / 2 + 0.5).clamp(0, 1))
    return fk.infer(model, fk.SMC(particles), seed=seed).values


def race(network, particles: int, steps: int, turns: int) -> np.ndarray:
    """Return CPU seconds, (turns, 2): the bare loop's and ours, by turns."""
    scheduler = DDPMScheduler()
    spent = np.zeros((turns + 1, 2))
    for turn in range(turns + 1):
        order = [(0, bare), (1, ours)] if turn % 2 else [(1, ours), (0, bare)]
        for place, loop in order:
            before = time.process_time()
            loop(network, scheduler, particles, steps, turn)
            spent[turn, place] = time.process_time() - before
    return spent[1:]  # the first is for warmth


def report(title: str, spent: np.ndarray, steps: int) -> np.ndarray:
    ratios = spent[:, 1] / spent[:, 0]
    low, high = np.quantile(ratios, [0.25, 0.75])
    each = 1000 * np.median(spent, 0) / steps
    print(f"{title:<28} {each[0]:10.2f} {each[1]:10.2f} {np.median(ratios):8.3f}  ({low:.3f}…{high:.3f})")
    return each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 128, 128])
    args = parser.parse_args()
    network = unet(args.channels)
    size = sum(weights.numel() for weights in network.parameters()) / 1e6
    print(f"K={args.particles}, {args.steps} steps, {args.turns} turns, {torch.get_num_threads()} threads")
    print(f"{'CPU ms per step':<28} {'bare':>10} {'ours':>10} {'ratio':>8}  (quartiles)")
    run = (args.particles, args.steps)
    real = report(f"UNet2DModel, {size:.1f} M weights", race(network, *run, args.turns), args.steps)
    none = report("no network", race(lambda x, t: 0.1 * x, *run, 10 * args.turns), args.steps)
    print(f"what our loop adds, as a share of a bare step: {(none[1] - none[0]) / real[0]:.2%}")


if __name__ == "__main__":
    main()
