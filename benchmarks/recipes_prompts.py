"""What the methods of `fk.programs` that choose prompts and answers do on the small models that are at hand.

    python benchmarks/recipes_prompts.py                      # all, some minutes
    python benchmarks/recipes_prompts.py temperatures         # one of them
    python benchmarks/recipes_prompts.py votes --problems 400 --seed 1

Countdown with four numbers, the reasoner and the verifier that ship (`fk.tasks`), held-out problems; ± is one standard
error over problems. ``places`` and ``prompts`` ask SmolLM2 (``make fetch``).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import feynkac as fk

TEMPERATURES = (0.4, 0.7, 1.0, 1.3)
POOL = 16
PLACES = (
    ("Which of these is a fruit?", "apple", "hammer", "cloud"),
    ("Which of these animals can fly?", "eagle", "horse", "shark"),
    ("What is the capital of France?", "Paris", "Rome", "Berlin"),
    ("Which of these is a colour?", "green", "table", "seven"),
    ("Which of these is the largest?", "an elephant", "a mouse", "a cat"),
    ("What do bees make?", "honey", "steel", "paper"),
    ("Which of these is cold?", "ice", "fire", "steam"),
    ("What is 2 + 3?", "5", "4", "9"),
    ("Which day comes after Monday?", "Tuesday", "Sunday", "Friday"),
    ("Which of these is a planet?", "Mars", "London", "banana"),
    ("What is the opposite of hot?", "cold", "tall", "loud"),
    ("Who wrote Hamlet?", "Shakespeare", "Einstein", "Mozart"),
)
"""Questions, the right answer first."""
PROMPTS = ("{question}", "Answer in one short sentence. {question}", "Explain it to a child. {question}")
QUESTIONS = ("Why is the sky blue?", "What is rain?", "Why do we sleep?", "What is a river?", "How do birds fly?")


def share(values: Sequence[float]) -> str:
    """Return the mean of values over problems, with its standard error."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def pools(problems: Sequence[Any], temperature: float, n: int, seed: int) -> list[Any]:
    """Return a hedged pool of each problem: the greedy answer, then n warm ones."""
    lm = fk.tasks.reasoner()
    models = [
        fk.programs.hedged(lm, lm.prompt(problem.prompt), n=n + 1, temperature=temperature, max_tokens=60)
        for problem in problems
    ]
    return [posterior.values[0] for posterior in fk.infer(models, fk.ImportanceSampling(1), seed=seed)]


def temperatures(problems: Sequence[Any], seed: int) -> None:
    """Hedged sampling: how often one answer, five, and a hedged pool of five hold a right one."""
    cold: list[float] = []
    for temperature in TEMPERATURES:
        one, five, hedge = [], [], []
        for problem, pool in zip(problems, pools(problems, temperature, POOL, seed)):
            greedy, *right = (problem.solved(text) for text in pool)
            one.append(np.mean(right))
            five.append(fk.scaling.bounds_at_k(right, 5).best)
            hedge.append(1.0 if greedy else fk.scaling.bounds_at_k(right, 4).best)
            cold.append(float(greedy))
        gain = share(np.subtract(hedge, five))
        print(f"T={temperature}: one {share(one)}, best of 5 {share(five)}, hedged {share(hedge)}, paired gain {gain}")
    print(f"greedy {share(cold[: len(problems)])}")


def said(text: Any) -> str:
    """Return what an answer claims to have reached."""
    return str(text).strip().rsplit("(")[-1]


def votes(problems: Sequence[Any], seed: int) -> None:
    """Think deep, think fast: votes of 1, 4 and 16, the verifier's choice, and the lengths of right and wrong."""
    prm, found, lengths = fk.tasks.verifier(), [], []
    for problem, pool in zip(problems, pools(problems, 0.7, POOL, seed)):
        texts = pool[1:]
        right = [problem.solved(text) for text in texts]
        lengths += [(len(text.tokens), ok) for text, ok in zip(texts, right)]
        scores = [prm(problem.prompt, text).evaluate() for text in texts]
        row = [float(np.mean(right))]
        for n in (4, POOL):
            groups = [range(start, start + n) for start in range(0, POOL, n)]
            winners = [Counter(said(texts[i]) for i in group).most_common(1)[0][0] for group in groups]
            row.append(
                float(np.mean([said_right(texts, right, group, winner) for group, winner in zip(groups, winners)]))
            )
            row.append(float(np.mean([right[max(group, key=lambda i: scores[i])] for group in groups])))
        found.append([*row, float(any(right))])
    names = "one", "vote of 4", "verifier of 4", "vote of 16", "verifier of 16", "any of 16"
    print(", ".join(f"{name} {share(column)}" for name, column in zip(names, np.transpose(found))))
    print(f"lengths of right and wrong: {fk.scaling.length_gap(*zip(*lengths))}")


def said_right(texts: Sequence[Any], right: Sequence[bool], group: Sequence[int], winner: str) -> float:
    """Return how often those of a group that claim the winning result are right."""
    return float(np.mean([right[i] for i in group if said(texts[i]) == winner]))


def revisions(problems: Sequence[Any], seed: int) -> None:
    """Four attempts in sequence, of which each sees the earlier ones, against four in parallel."""
    lm, prm = fk.tasks.reasoner(), fk.tasks.verifier()

    def prompt(problem: str, attempts: Sequence[str]) -> str:
        return "".join(f"{problem}{attempt}\n" for attempt in attempts) + problem

    def verify(problem: str, text: Any) -> Any:
        return prm(problem, text) if str(text).strip() else 0.0  # nothing was written

    def chain(problem: Any, last: int) -> Any:
        law = {"temperature": 0.7, "max_tokens": 60}
        return fk.programs.revise(lm, verify, problem.prompt, rounds=4, last=last, prompt=prompt, **law)

    rows = []
    for last in (4, 0):
        found = fk.infer([chain(problem, last) for problem in problems], fk.ImportanceSampling(4), seed=seed)
        rows.append([np.mean([problem.solved(text) for text in p.values]) for problem, p in zip(problems, found)])
        tokens = np.mean([(p.cost.tokens_in / 4, p.cost.tokens_out / 4) for p in found], 0)
        print(f"last={last}: {share(rows[-1])}, tokens read {tokens[0]:.0f}, written {tokens[1]:.0f}")
    print(f"paired: {share(np.subtract(*rows))}")


def places(problems: Sequence[Any], seed: int) -> None:
    """Medprompt: where SmolLM2 finds an answer, by the place of the right one; and what shuffling does."""
    lm = smollm2()
    asked = "{question}\n{choices}\nAnswer with the letter alone.\n"
    law: dict[str, Any] = {"max_tokens": 2, "temperature": 1.0, "k": 0, "prompt": asked}
    for place, letter in enumerate("ABC"):
        models = []
        for question, right, *wrong in PLACES:
            choices = [*wrong[:place], right, *wrong[place:]]
            models.append(fk.programs.medprompt(lm, question, choices, shuffle=False, **law))
        found = fk.infer(models, fk.ImportanceSampling(POOL), seed=seed)
        print(f"right at {letter}: {share(rates(found))}, unread {share(rates(found, lambda v, q: v is None))}")
    shuffled = [fk.programs.medprompt(lm, question, choices, **law) for question, *choices in PLACES]
    found = fk.infer(shuffled, fk.ImportanceSampling(60), seed=seed)
    fives = [
        np.mean([vote(p.values[start : start + 5]) == right for start in range(0, 60, 5)])
        for p, (_, right, *_) in zip(found, PLACES)
    ]
    print(f"shuffled: one {share(rates(found))}, vote of 5 {share(fives)}")


def rates(found: Sequence[Any], holds: Callable[[Any, Any], bool] = lambda value, q: value == q[1]) -> list[float]:
    """Return how often something holds of the values, by question."""
    return [float(np.mean([holds(value, q) for value in p.values])) for p, q in zip(found, PLACES)]


def vote(values: Sequence[Any]) -> Any:
    """Return the most frequent value, the first of equal ones; None abstains."""
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def prompts(problems: Sequence[Any], seed: int) -> None:
    """A latent prompt: what the weights of a judge of brevity and clarity make of three prompts, by question."""
    lm = smollm2()
    judge = fk.rewards.Judge(lm, "Is this a short and clear answer to the question '{question}'? {text}\nYes or No?")
    models = [
        fk.programs.choose_prompt(
            lm, question, PROMPTS, max_tokens=40, reward=lambda text, q=question: judge(text, question=q).log() * 4
        )
        for question in QUESTIONS
    ]
    for question, p in zip(QUESTIONS, fk.infer(models, fk.ImportanceSampling(24), seed=seed)):
        weights = np.exp(p.chains[0].log_weights)
        chosen = np.array([p.trace(i)["prompt"].value for i in range(24)])
        shares = [round(float(weights[chosen == k].sum() / weights.sum()), 2) for k in range(len(PROMPTS))]
        print(f"{question} drawn {Counter(chosen.tolist())}, posterior {shares}, ESS {p.ess}")


def smollm2() -> Any:
    """Return SmolLM2-135M-Instruct."""
    return fk.models.TransformersLM.from_pretrained("smollm2")


METHODS = {f.__name__: f for f in (temperatures, votes, revisions, places, prompts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[*METHODS, []])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.methods or METHODS:
        print(f"{name}:")
        METHODS[name](fk.tasks.problems(given.problems, seed=0, numbers=4), given.seed)


if __name__ == "__main__":
    main()
