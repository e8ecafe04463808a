"""Workers of Ray: wall time of many problems on one worker and on two, for a model that waits as a server would.

    pip install "feynkac[scale]"
    python benchmarks/workers.py

Each problem is a program of some steps, each of which waits for a "server" (it sleeps, so that the figures hold on a
machine whose cores are busy), under SMC. Chunks of problems share their waits, as they share the requests of a wave.
Two clocks: that of the whole call, with the start of the worker processes (the cluster is there before), which takes a
second on an idle machine and many on a busy one; and the time from the first request to the last. All posteriors are
compared with those of one process. The target: two workers at least 1.8 times as fast as one.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import feynkac as fk


@fk.batched
def wait(seconds):
    began = time.time()
    time.sleep(seconds[0])
    return [(began, time.time())] * len(seconds)


@fk.program
async def asks(steps, seconds, scale):
    x, waits = 0.0, []
    for _ in range(steps):
        waits.append(await fk.call("server", wait, seconds))
        x = await fk.sample("x", fk.dist.Normal(x, scale))
        await fk.factor("G", -x * x)
    return x, waits[0][0], waits[-1][1]


def found(posteriors):
    return [([x for x, _, _ in p.values], p.log_evidence) for p in posteriors]


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
    alone = found(fk.infer(fast, engine, seed=0))
    clocks: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(args.repeats):
        for count, times in clocks.items():
            began = time.perf_counter()
            posteriors = fk.infer(models, engine, seed=0, workers=fk.Ray(count, chunk=args.chunk))
            whole = time.perf_counter() - began
            assert found(posteriors) == alone
            first, last = min(p.values[0][1] for p in posteriors), max(p.values[0][2] for p in posteriors)
            times.append((whole, last - first))
    slept = args.problems / args.chunk * args.steps * args.seconds
    print(f"{args.problems} problems in chunks of {args.chunk}, {slept:.0f} s of waiting; median wall seconds")
    (one, two) = (np.median(times, axis=0) for times in clocks.values())
    for i, clock in enumerate(("whole call", "first request to last")):
        print(f"  {clock:22s} 1 worker {one[i]:.1f}, 2 workers {two[i]:.1f}: {one[i] / two[i]:.2f} times as fast")


if __name__ == "__main__":
    main()
