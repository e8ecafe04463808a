"""What our loop costs over a bare loop: CPU time of SMC without a reward, K particles, in one run.

    python benchmarks/diffusion_overhead.py                # images by DDPM steps, beside a loop of diffusers
    python benchmarks/diffusion_overhead.py --masked       # texts from masks, beside a loop of torch

Both take the same steps with the same network, and take turns; the ratio is the median over the turns of ours to
the bare one beside it. The second row has a network that does nothing, so that what is left is the loops themselves;
what it says is the steadier on a busy machine. Ours also keeps the history, the estimate of the data and exact
densities, and resamples when asked to. The bare loop of masks asks for the laws of those tokens alone that a step
reveals, which is the least that can be done.

The rule: what our loop adds is less than 3% of a bare step of a network of the size that is used.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from transformers import BertConfig, BertForMaskedLM

import feynkac as fk
from feynkac.diffusion import Ancestral, DiffusersNetwork, Diffusion, MaskedDiffusion, Network, TokenNetwork

SIZE = 32
LENGTH, VOCABULARY = 64, 30_522


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


def bert(layers: int) -> BertForMaskedLM:
    """Build BERT (Devlin et al. 2019), with random weights and its own vocabulary."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers)
    return BertForMaskedLM(config).requires_grad_(False).eval()


@torch.no_grad()
def bare_masked(network, particles: int, steps: int, seed: int):
    """The ancestral loop of masked diffusion (MDLM, arXiv:2406.07524)."""
    generator = torch.Generator().manual_seed(seed)
    mask = VOCABULARY - 1
    x = torch.full((particles, LENGTH), mask)
    for i in range(steps):
        out = network(x, None, None)
        shown = (x == mask) & (torch.rand(x.shape, generator=generator) < 1.0 / (steps - i))
        logits = out[shown]
        logits[:, mask] = -torch.inf
        x[shown] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return x.numpy()


def ours_masked(network, particles: int, steps: int, seed: int):
    model = MaskedDiffusion(network, LENGTH, Ancestral(steps), vocabulary=VOCABULARY)
    return fk.infer(model, fk.SMC(particles), seed=seed).values


def race(loops, particles: int, steps: int, turns: int) -> np.ndarray:
    """Return CPU seconds, (turns, 2), of two loops: the bare one's and ours, by turns."""
    spent = np.zeros((turns + 1, 2))
    for turn in range(turns + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            before = time.process_time()
            loops[place](particles, steps, turn)
            spent[turn, place] = time.process_time() - before
    return spent[1:]  # the first is for warmth


def report(title: str, spent: np.ndarray, steps: int) -> np.ndarray:
    ratios = spent[:, 1] / spent[:, 0]
    low, high = np.quantile(ratios, [0.25, 0.75])
    each = 1000 * np.median(spent, 0) / steps
    print(f"{title:<28} {each[0]:10.2f} {each[1]:10.2f} {np.median(ratios):8.3f}  ({low:.3f}…{high:.3f})")
    return each


def images(network) -> list:
    """Return the loops over a network of images."""
    scheduler = DDPMScheduler()
    return [partial(loop, network, scheduler) for loop in (bare, ours)]


def texts(network) -> list:
    """Return the loops over a network of texts."""
    return [partial(loop, network) for loop in (bare_masked, ours_masked)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masked", action="store_true", help="texts from masks, by BERT, in place of images")
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 128, 128])
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    network = bert(args.layers) if args.masked else unet(args.channels)
    size = sum(weights.numel() for weights in network.parameters()) / 1e6
    title = f"{type(network).__name__}, {size:.1f} M weights"
    print(f"K={args.particles}, {args.steps} steps, {args.turns} turns, {torch.get_num_threads()} threads")
    print(f"{'CPU ms per step':<28} {'bare':>10} {'ours':>10} {'ratio':>8}  (quartiles)")
    if args.masked:
        logits = torch.randn(args.particles, LENGTH, VOCABULARY)
        real, nothing = texts(TokenNetwork(network)), texts(Network(lambda x, time: logits[: len(x)], "logits"))
    else:
        real, nothing = images(network), images(lambda x, t: 0.1 * x)
    run = (args.particles, args.steps)
    of_network = report(title, race(real, *run, args.turns), args.steps)
    none = report("no network", race(nothing, *run, 10 * args.turns), args.steps)
    print(f"what our loop adds, as a share of a bare step: {(none[1] - none[0]) / of_network[0]:.2%}")


if __name__ == "__main__":
    main()
