"""Do steps that a small model drafts pay? Passes of the large model, time, and what the weights cost.

    python benchmarks/speculative.py --short     # seconds, without SmolLM2
    python benchmarks/speculative.py             # ten minutes on one core

The claim (Emara et al. 2026, arXiv:2604.15672, on GPUs): particles that a small model drafts, weighed and resampled,
write faster than speculative decoding (Leviathan et al. 2023, arXiv:2211.17192), whose law is exactly the large
model's, and much faster than the large model alone, and what they write has nearly its law.

1. "toy": 8 tokens of a vocabulary of 3 by the tables p and q = softmax of a half p's logits + 0.6·N(0, 1), seed 1 (p as
   in ``power.py``). Blocks are a token of p and γ of q, then a weight; `SMC` resamples where ESS ≤ n/2, and one answer
   is drawn by weight. Its total variation from p on the first four tokens (81 texts) is estimated from 2000 answers,
   with the error of plain draws beside it. Passes of the large model for each answer: 8/(γ+1), rounded up; those of
   speculative decoding with as many drafted tokens are counted over 2000 answers. Holds at γ = 3 if with n = 16 the
   distance is at most .05 above that of plain draws, in fewer passes than speculative decoding.
2. "SmolLM2" (135M parameters, 30 layers; float32, one thread), drafted by its own first 15 layers, which were not
   trained for it: the only draft with its tokenizer that can be had offline. Six prompts, 25 tokens, no end tokens.
   Ours: 4 particles, γ = 4, against plain steps of 4 particles. The peer: transformers' assisted generation with the
   same draft (``assistant_early_exit=15``), 4 tokens ahead, against its plain sampling, one text at a time, as it takes
   no more. Each "pays" if the 95% interval over prompts of log(CPU time plain / CPU time drafted) is above 0, and does
   not if it is below. Told beside: passes of the large model, the effective sample size of the weights at the end
   (nothing resampled), and log(p/q) a token.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from common.records import Records, asked
from power import VOCABULARY, Writer, Written, table

import feynkac as fk

TOKENS, SHOWN, AHEAD, LAYERS = 8, 4, 4, 15
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a fox who",
    "To make bread you need flour, water and",
    "The reason why the sky is blue is that",
    "My favourite book is about a man who",
    "In the year 1969 the first men",
)


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Return log p and log q of a token after each other, (V + 1, V); the row V is that of the first."""
    first, after = table()
    p = np.vstack([after, first])
    q = 0.5 * p + 0.6 * np.random.default_rng(1).normal(size=p.shape)
    return p, q - np.logaddexp.reduce(q, axis=1, keepdims=True)


class Blocks(Writer):
    """The toy by blocks: a token of p, γ of q, and the weight of all."""

    def __init__(self, gamma: int) -> None:
        super().__init__(TOKENS, False)
        self.gamma = gamma
        self.p, self.drafts = tables()

    def _step(self, state: Written, keys: Any) -> fk.Advance:
        log_p, log_q = np.zeros(len(keys)), np.zeros(len(keys))
        block = min(self.gamma + 1, self.tokens - int(state.length[0]))
        for at in range(block):
            self.q = self.p if at == 0 else self.drafts
            self.cumulative = np.cumsum(np.exp(self.q), axis=1)
            made = super()._step(state, fk.keys.fold(keys, at))
            state, log_p, log_q = made.state, log_p + made.log_prob, log_q + made.log_proposal
        zeros, yes = np.zeros(len(keys)), np.ones(len(keys), bool)
        choices = [(number,) for number in state.number.tolist()]
        return fk.Advance(state, choices, log_p, log_q, zeros, zeros, state.done, yes)


def law() -> np.ndarray:
    """Return p of the first tokens, as a table of all their texts."""
    p, _ = tables()
    log_p = p[VOCABULARY]
    for _ in range(SHOWN - 1):
        log_p = (log_p[:, None] + p[np.arange(len(log_p)) % VOCABULARY]).ravel()
    return np.exp(log_p)


def rejecting(gamma: int, rng: np.random.Generator) -> tuple[int, int]:
    """Write a text by speculative decoding; return the number of its beginning, and passes of the large model."""
    p, q = (np.exp(x) for x in tables())
    text: list[int] = []
    passes = 0
    while len(text) < TOKENS:
        passes += 1
        for _ in range(gamma):
            row = text[-1] if text else VOCABULARY
            token = int(rng.choice(VOCABULARY, p=q[row]))
            if rng.random() >= p[row, token] / q[row, token]:
                rest = np.maximum(p[row] - q[row], 0.0)
                text.append(int(rng.choice(VOCABULARY, p=rest / rest.sum())))
                break
            text.append(token)
        else:
            text.append(int(rng.choice(VOCABULARY, p=p[text[-1]])))
    return int(np.polyval(text[:SHOWN], VOCABULARY)), passes


def toy(records: Records, answers: int, sizes: tuple[int, ...]) -> None:
    """Run part 1."""
    truth, cut = law(), VOCABULARY ** (TOKENS - SHOWN)
    for gamma in (1, 3, 7):
        for n in (0, *sizes):
            row = {"part": "toy", "what": "rejection" if n == 0 else "SMC", "gamma": gamma, "size": n}
            if row in records:
                continue
            found, passes = np.zeros(len(truth)), float(math.ceil(TOKENS / (gamma + 1)))
            if n == 0:
                rng = np.random.default_rng(0)
                written = [rejecting(gamma, rng) for _ in range(answers)]
                np.add.at(found, [number for number, _ in written], 1.0)
                passes = float(np.mean([count for _, count in written]))
            else:
                for seed, posterior in enumerate(fk.infer([Blocks(gamma)] * answers, fk.SMC(n), seed=0)):
                    chosen = np.random.default_rng(seed).choice(n, p=posterior.probabilities)
                    found[posterior.values[chosen] // cut] += 1
            distance = 0.5 * float(np.abs(found / answers - truth).sum())
            records.add({**row, "distance": distance, "passes": passes})
    rng = np.random.default_rng(2)
    plain = [0.5 * np.abs(rng.multinomial(answers, truth) / answers - truth).sum() for _ in range(50)]
    row = {"part": "toy", "what": "plain", "gamma": 0, "size": 0}
    if row not in records:
        records.add({**row, "distance": float(np.mean(plain)), "passes": float(TOKENS)})


@fk.program
async def story(lm: Any, prompt: str, blocks: int, **settings: Any) -> Any:
    text = lm.prompt(prompt)
    for _ in range(blocks):
        text = await fk.sample("block", lm.tokens(text, AHEAD + 1, **settings))
        await fk.factor("end", 0.0)
    return text


def ours(lm: Any, prompt: str, blocks: int, seed: int, **settings: Any) -> dict[str, float]:
    """Write with four particles; CPU seconds, passes of the large model, and what the weights are worth."""
    passes, invoke = [], lm.forwarder.invoke  # the draft has a forwarder of its own over the same layers

    def counted(**inputs: Any) -> Any:
        passes.append(1)
        return invoke(**inputs)

    lm.forwarder.invoke = counted
    begun = time.process_time()
    posterior = fk.infer(story(lm, prompt, blocks, **settings), fk.SMC(4, ess_threshold=0.0), seed=seed)
    seconds = time.process_time() - begun
    lm.forwarder.invoke = invoke
    tokens = blocks * (AHEAD + 1)
    gap = float(np.mean(posterior.log_weights)) / tokens
    ess = float(1 / np.square(posterior.probabilities).sum())
    return {"seconds": seconds, "passes": len(passes), "ess": ess, "gap": gap}


def peers(lm: Any, prompt: str, blocks: int, seed: int, assisted: bool) -> dict[str, float]:
    """Write one text by transformers' own sampling, or by its assisted generation with an early exit."""
    import torch

    torch.manual_seed(seed)
    ids = torch.tensor([list(lm.prompt(prompt).prompt_tokens)])
    model, tokens = lm.model, blocks * (AHEAD + 1)
    settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "min_new_tokens": tokens, "max_new_tokens": tokens}
    if assisted:
        model.generation_config.num_assistant_tokens = AHEAD
        model.generation_config.num_assistant_tokens_schedule = "constant"
        settings["assistant_early_exit"] = LAYERS
    begun = time.process_time()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
    seconds = time.process_time() - begun
    return {"seconds": seconds, "written": int(out.shape[1] - ids.shape[1])}


def smollm2(records: Records, blocks: int) -> None:
    """Run part 2."""
    import torch

    torch.set_num_threads(1)
    lm = fk.models.TransformersLM.from_pretrained("smollm2")
    lm.eos = frozenset()
    draft = lm.variant(layers=LAYERS)
    whole = {"draft": draft, "gamma": AHEAD}
    for i, prompt in enumerate(PROMPTS):
        for what in ("plain", "drafted", "generate", "assisted"):
            row = {"part": "smollm2", "what": what, "gamma": AHEAD, "size": i}
            if row in records:
                continue
            if what in ("plain", "drafted"):
                lm.refresh()
                draft.refresh()
                found = ours(lm, prompt, blocks, i, **(whole if what == "drafted" else {}))
            else:
                found = peers(lm, prompt, blocks, i, what == "assisted")
            records.add({**row, **found})
            print(f"{prompt}: {what} {found}", flush=True)


def shown(records: Records) -> None:
    """Print the parts, each with what its verdict goes by."""
    print("1. toy: distance from p of the first four tokens, passes of the large model")
    for row in (r for r in records.rows if r["part"] == "toy"):
        told = f"{row['what']:9} γ={row['gamma']} n={row['size']:2}"
        print(f"   {told}: {row['distance']:.3f}, {row['passes']:.2f}")
    rows = [r for r in records.rows if r["part"] == "smollm2"]
    if not rows:
        return
    print("2. SmolLM2: CPU seconds, geometric mean over prompts; plain over drafted, 95% interval")
    seconds = {w: np.log([r["seconds"] for r in rows if r["what"] == w]) for w in {r["what"] for r in rows}}
    for plain, drafted in (("plain", "drafted"), ("generate", "assisted")):
        gain = seconds[plain] - seconds[drafted]
        error = 1.96 * gain.std(ddof=1) / math.sqrt(len(gain))
        mean = [math.exp(seconds[w].mean()) for w in (plain, drafted)]
        low, at, high = (math.exp(gain.mean() + k * error) for k in (-1, 0, 1))
        print(f"   {plain} {mean[0]:.2f}, {drafted} {mean[1]:.2f}: {at:.2f}× [{low:.2f}, {high:.2f}]")
    for what in ("plain", "drafted"):
        own = [r for r in rows if r["what"] == what]
        passes, ess, gap = (np.mean([r[name] for r in own]) for name in ("passes", "ess", "gap"))
        print(f"   {what}: {passes:.1f} passes, ESS {ess:.2f} of 4, log(p/q) a token {gap:+.2f}")


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    arguments, records = asked(__doc__, "speculative", ("part", "what", "gamma", "size"), argv, plot=False)
    toy(records, 50 if arguments.short else 2000, (1, 4) if arguments.short else (1, 4, 16))
    if not arguments.short:
        smollm2(records, 5)
    shown(records)


if __name__ == "__main__":
    main()
