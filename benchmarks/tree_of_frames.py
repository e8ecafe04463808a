"""Tree-of-Frames against linear search (best-of-N of whole clips) at equal reward: denoiser evaluations of each.

    python benchmarks/tree_of_frames.py              # five minutes on one core
    python benchmarks/tree_of_frames.py --pool 60 --seeds 2      # half a minute

The model is the library's frame-autoregressive one, of a digit that flies about a box: 16 frames of 10 denoising steps
each, so that a clip costs 160 evaluations. The reward is the log-likelihood of its path if it flies straight and is
turned by the walls. Best-of-N is measured once, on a pool of clips, which gives its expected reward for every N without
bias; each tree is run with several seeds. A tree "keep × children" judges its clips at every frame, keeps the best few
and gives each so many children. "times" is what best-of-N needs for the same mean reward over what the tree used; where
the whole pool is not enough, it says more than. "light" is the mean brightness of the chosen clips in 0…1, beside that
of the pool: a reward of motion could be had by going dark.

The shapes of the trees were chosen on the seeds 1000…1003 (`--first-seed 1000 --seeds 4 --trees …`); none of those is
among the seeds reported.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common.best_of_n import expected, needed
from peers.race import table

import feynkac as fk

TREES = ("1x2", "1x3", "1x4", "1x6", "1x8")


def light(clips: list[np.ndarray]) -> float:
    return float(np.mean([(np.clip(clip, -1.0, 1.0).mean() + 1.0) / 2.0 for clip in clips]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of each frame")
    parser.add_argument("--pool", type=int, default=500, help="clips of best-of-N")
    parser.add_argument("--trees", nargs="+", default=list(TREES), help="keep × children, as 2x3")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    video = fk.diffusion.bouncing(args.frames, args.steps, reward=fk.diffusion.bouncing_motion())
    model, clip = fk.Blocks(video, video.unit), args.frames * args.steps
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    began = time.process_time()
    runs = fk.infer(model, fk.ImportanceSampling(args.pool), seed=100)
    pool = runs.log_potential
    print(f"{args.frames} frames of {args.steps} steps; pool of {args.pool} clips ({runs.cost.nfe:,} NFE)", flush=True)
    rows = [
        [f"best of {n}", f"{n * clip:,}", f"{expected(pool, n):.1f}", "", "", "", ""]
        for n in (1, 4, 16, 64, 256, 1024)
        if n <= args.pool
    ]
    rows[0][-2:] = [f"{light(list(runs.values)):.3f}", f"{time.process_time() - began:.0f}"]
    for shape in args.trees:
        keep, children = map(int, shape.split("x"))
        engine = fk.TreeOfFrames((keep * children, *[children] * (args.frames - 1)), keep=keep)
        began = time.process_time()
        found = [fk.infer(model, engine, seed=seed) for seed in seeds]
        chosen = [int(np.argmax(p.log_weights)) for p in found]
        rewards = np.array([p.log_potential[i] for p, i in zip(found, chosen)])
        nfe, same = np.mean([p.cost.nfe for p in found]), needed(pool, rewards.mean()) * clip
        enough = np.isfinite(same)
        error = rewards.std(ddof=1) / np.sqrt(len(rewards)) if len(rewards) > 1 else np.nan
        rows.append(
            [
                f"tree, {keep} × {children}",
                f"{nfe:,.0f}",
                f"{rewards.mean():.1f} ± {error:.1f}",
                f"{same:,.0f}" if enough else f"> {len(pool) * clip:,}",
                f"{same / nfe:.1f}" if enough else f"> {len(pool) * clip / nfe:.0f}",
                f"{light([p.values[i] for p, i in zip(found, chosen)]):.3f}",
                f"{(time.process_time() - began) / args.seeds:.1f}",
            ]
        )
    table(["", "NFE", "reward", "best-of-N NFE for it", "times", "light", "CPU s"], rows)


if __name__ == "__main__":
    main()
