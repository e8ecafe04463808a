"""Local generation on your card: tokens per second, peak memory and exactness, beside ``generate`` and vLLM.

    python benchmarks/gpu.py --model Qwen/Qwen2.5-7B --particles 64 --prompt 500 --tokens 128
    python benchmarks/gpu.py --tiny                      # a tiny random model, on a CPU too

Every contestant draws N texts of some tokens after one prompt, end tokens taken for ordinary ones, in a process of its
own; one comes after the other, so that each has the card to itself. ``feynkac, steps`` draws them whole, as
``generate`` and vLLM do; ``feynkac, SMC`` weighs each token and resamples at ESS < N/2, which the others do not. vLLM
takes part where it is installed, beside feynkac or by ``make peers`` (that one is for CPUs); it takes what memory it is
told to take.

Loading, compiling and a short warm-up are left out. "off by" is the largest difference, over some texts, between the
log-probability of a text as the contestant has it and that of one pass of transformers over the whole text, in the same
type: rounding alone, and in bfloat16 there is much of it, so compare it with that of ``generate``. "law" is the z-score
of χ² of many draws of one token against that pass (below 4.75, unless something is wrong). The last line is all of it
as JSON, with the names of the card and the versions of the libraries.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from peers.race import ENVIRONMENTS, Worker, race, table
from transformers import AutoModelForCausalLM

from feynkac.models.fetch import resolve
from feynkac.models.testing import tiny_lm

CONTESTANTS = {  # name: worker, settings of its own
    "feynkac, steps": ("gpu_feynkac.py", {"weighs": False}),
    "feynkac, SMC": ("gpu_feynkac.py", {"weighs": True}),
    "generate": ("gpu_generate.py", {}),
    "vLLM": ("gpu_vllm.py", {}),
}


def vllm() -> tuple[bool, str | None]:
    """Return whether there is a vLLM, and in which of the peers' environments: None is this one."""
    there = (ENVIRONMENTS / "vllm" / "bin" / "python").exists()
    return (True, None) if find_spec("vllm") else (there, "vllm" if there else None)


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on: the card, and the versions of the libraries."""
    card = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    found: dict[str, Any] = {"card": card or f"no GPU ({platform.machine()}, threads: {torch.get_num_threads()})"}
    for name in ("feynkac", "torch", "transformers", "vllm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@torch.inference_mode()
def whole(model: Any, prompt: Sequence[int], text: Sequence[int]) -> tuple[float, np.ndarray]:
    """One pass over a whole text: its log-probability after the prompt, and the law of the next token (V,)."""
    ids = torch.tensor([[*prompt, *text]], device=model.device)
    laws = model(ids, use_cache=False).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
    log_prob = laws[torch.arange(len(text)), ids[0, len(prompt) :]].sum()
    return float(log_prob), laws[-1].exp().cpu().numpy()


def misfit(draws: Sequence[int], law: np.ndarray) -> float:
    """Return the z-score of χ² of draws against a law (V,): of rare tokens only how often any of them comes."""
    expected = law * len(draws)
    counts = np.bincount(draws, minlength=len(law))
    often = expected >= 5.0
    found, wanted = [*counts[often], counts[~often].sum()], [*expected[often], expected[~often].sum()]
    # The last is few where hardly anything is rare.
    terms = [(a - b) ** 2 / b for a, b in zip(found, wanted) if b >= 1.0]
    freedom = len(terms) - 1
    return (sum(terms) - freedom) / math.sqrt(2 * freedom) if freedom > 0 else math.nan


def judge(model: Any, made: Mapping[str, Any]) -> dict[str, float]:
    """How exact a contestant was in its last turn."""
    prompt = made["prompt"][-1]
    pairs = zip(made["texts"][-1], made["log_probs"][-1])
    found = {"off by": max(abs(whole(model, prompt, text)[0] - given) for text, given in pairs)}
    if "draws" in made:
        found["law"] = misfit(made["draws"][-1], whole(model, prompt, made["texts"][-1][0])[1])
    return found


def compare(folder: str, start: Callable[[str], Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one contestant after the other, judge them, and print a table and a line of JSON."""
    results = {name: race({name: start(name)}, args.repeats)[name] for name in args.only}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    rows = []
    for name, made in results.items():
        rate = args.particles * args.tokens / np.median(made["seconds"])
        compiled = {"compiled": made["compiled"][-1]} if "compiled" in made else {}
        rows.append({"name": name, "tokens/s": rate, "GiB": max(made["gib"]), **judge(model, made), **compiled})
    columns = [("tokens/s", "{:,.0f}"), ("GiB", "{:.2f}"), ("off by", "{:.1e}"), ("law", "{:.1f}")]
    cells = [[row["name"], *(form.format(row[key]) if key in row else "" for key, form in columns)] for row in rows]
    settings = {key: getattr(args, key) for key in ("model", "particles", "prompt", "tokens", "dtype")}
    about = machine(args.device)
    print(", ".join(f"{key}: {value}" for key, value in (about | settings).items()))
    table(["", *(key for key, _ in columns)], cells)
    print(json.dumps(about | settings | {"repeats": args.repeats, "rows": rows}))
    return rows


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options; those of the device are chosen by what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a folder, a name on the hub, or an alias of feynkac's")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model")
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=200, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="bfloat16 on a GPU and float32 on a CPU, if not given")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="feynkac's passes")
    parser.add_argument("--vllm-memory", type=float, default=0.6, help="the share of the card that vLLM takes")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    args = parser.parse_args(given)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def settings_of(name: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the worker of a contestant is told."""
    shared = {"model": folder, "n": args.particles, "prompt": args.prompt, "tokens": args.tokens}
    place = {"vLLM": {"share": args.vllm_memory}, "generate": {"device": args.device}}
    own = place.get(name, {"device": args.device, "compiled": args.compile})
    return shared | {"dtype": args.dtype, "warm_up": {"tokens": 4}} | CONTESTANTS[name][1] | own


def main() -> None:
    args = parse()
    there, environment = vllm()
    if not there and "vLLM" in args.only:
        args.only.remove("vLLM")
        print("vLLM is not installed, and is left out")
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.model = "tiny"
            lm = tiny_lm(context=args.prompt + args.tokens + 1)
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
        else:
            folder = resolve(args.model)

        def start(name: str) -> Worker:
            own = environment if name == "vLLM" else None
            settings = settings_of(name, folder, args)
            return Worker(CONTESTANTS[name][0], own, settings, torch.get_num_threads(), offline=False)

        compare(folder, start, args)


if __name__ == "__main__":
    main()
