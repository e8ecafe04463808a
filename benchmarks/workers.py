"""Workers of Ray: wall time of many problems on one worker and on two, for a model that waits as a server would.

    pip install "feynkac[scale]"
    python benchmarks/workers.py

Each problem is a program of some steps, each of which waits for a "server" (it sleeps, so that the figures hold on a
machine whose cores are busy), under SMC. Chunks of problems share their waits, as they share the requests of a wave.
The cluster is there before the clock starts; that its workers start is in the figures, and shown apart by a run without
waits. All posteriors are compared with those of one process. The target: two workers at least 1.8 times as fast as one.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import feynkac as fk


@fk.batched
def wait(seconds):
    time.sleep(seconds[0])
    return seconds


@fk.program
async def asks(steps, seconds, scale):
    x = 0.0
    for _ in range(steps):
        await fk.call("server", wait, seconds)
        x = await fk.sample("x", fk.dist.Normal(x, scale))
        await fk.factor("G", -x * x)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="a wave waits for the server")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, **quiet)
    engine = fk.SMC(args.particles)
    models = [asks(args.steps, args.seconds, 1.0 + i / 100) for i in range(args.problems)]
    fast = [asks(args.steps, 0.0, 1.0 + i / 100) for i in range(args.problems)]
    alone = [(p.values, p.log_evidence) for p in fk.infer(fast, engine, seed=0)]
    walls: dict[tuple[int, bool], list[float]] = {(n, waits): [] for waits in (False, True) for n in (1, 2)}
    for _ in range(args.repeats):
        for (count, waits), found in walls.items():
            began = time.perf_counter()
            workers = fk.Ray(count, chunk=args.chunk)
            posteriors = fk.infer(models if waits else fast, engine, seed=0, workers=workers)
            found.append(time.perf_counter() - began)
            assert [(p.values, p.log_evidence) for p in posteriors] == alone
    median = {which: float(np.median(found)) for which, found in walls.items()}
    slept = args.problems / args.chunk * args.steps * args.seconds
    print(f"{args.problems} problems in chunks of {args.chunk}, {slept:.0f} s of waiting; wall seconds")
    for count in (1, 2):
        print(f"  {count} worker(s): {median[count, True]:.1f} (without waits {median[count, False]:.1f})")
    print(f"two workers are {median[1, True] / median[2, True]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
