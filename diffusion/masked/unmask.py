"""One step of unmasking as a kernel, for programs: of any text with gaps, by any model and rule."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...ppl.keys import Keys
from ...ppl.model import Draws, Floats
from ...ppl.values.reals import whole_number
from ..denoiser import join
from ..generator import leaves
from ..latents import Latents
from ..tokens import are_tokens, check_temperature
from .generator import MaskedDiffusion
from .rules import Ancestral, InOrder, Rule
from .site import Site

Tokens = tuple[int, ...]


def unmask(
    model: MaskedDiffusion,
    text: Sequence[int] | None = None,
    count: int = 1,
    rule: Rule | None = None,
    *,
    temperature: float = 1.0,
    among: Sequence[int] | None = None,
) -> Unmask:
    """Return the kernel of one step of unmasking: its values are the tokens after it, a tuple, with its probability.

    Where `denoise` moves a model's own particles by the model's rule, here each step says what it does: from which
    tokens (of an earlier step, of a prompt, with gaps anywhere, some masked again), how many positions, which, how
    coldly, and by which model; a reward reads the tokens so far. A step costs one run of the network, and so does its
    probability where it is forced. All steps of a wave that are of one model share a call.

    Args:
        model: whose network, temperature, condition (of one text) and mask; its own rule and blocks are not asked.
        text: (L,) tokens, the model's mask where one is to be found; None: the model's template.
        count: how many positions, if so many are masked.
        rule: which ones: `InOrder` (one, the default), ``AtRandom(1)``, ``Confident(1, …)`` (and all above its
            threshold), a step each.
        temperature: the law of a token is μ^(1/temperature), μ the model's at its own temperature.
        among: positions that may be revealed now, such as a block; None: all that are masked.

    A text without masks there gives itself, with probability 1.

    Raises ValueError for what is no text of the model, a model with a batch of conditions or that weighs particles
    itself, positions that are not there, a rule of several steps, of a schedule, or of one position where ``count`` is
    more, and a temperature that is not positive and finite; TypeError for what is no such model, and for a count that
    is no whole number.

    >>> import feynkac as fk
    >>> network = fk.diffusion.Network(lambda tokens, share: torch.zeros(*tokens.shape, 3), "logits")
    >>> model = fk.diffusion.MaskedDiffusion(network, 4, vocabulary=3)
    >>> @fk.program
    ... async def gap():
    ...     x = (0, 2, 2, 1)
    ...     while 2 in x:
    ...         x = await fk.sample("step", unmask(model, x))
    ...         await fk.factor("ones", 1.0 * x.count(1))
    ...     return x
    >>> fk.infer(gap(), fk.SMC(20), seed=0).best()
    (0, 1, 1, 1)
    """
    if type(model) is not MaskedDiffusion:
        raise TypeError(f"unmask asks the network of a MaskedDiffusion, and of nothing else, not {model!r:.200}")
    if any(one is not None for one in (model.steering, model.twist, model.optimal)):
        raise ValueError("a model with steering weighs particles itself: give one without, and use fk.factor")
    rule = InOrder() if rule is None else rule
    whole_number("count", count, 1)
    if isinstance(rule, Ancestral):
        raise ValueError(f"unmask reveals a number of positions, and {rule!r} goes by a schedule: use AtRandom(1)")
    if isinstance(rule, InOrder) and count > 1:
        raise ValueError(f"{rule!r} reveals one position, not {count}: use AtRandom(1) or Confident(1)")
    if getattr(rule, "count", 1) != 1:
        raise ValueError(f"unmask is one step, and {rule!r} is of several: give it 1, and unmask its count")
    check_temperature(temperature, "Confident(1, greedy=True)")
    if any(len(leaf) != 1 for leaf in leaves(model.condition)):
        raise ValueError("the model's condition is a batch of several: give it that of this text")
    length = model.shape[0]
    tokens = np.asarray(model.template.cpu() if text is None else text)
    if tokens.shape != (length,) or not are_tokens(tokens, model.vocabulary):
        raise ValueError(f"a text is {length} tokens from 0 to {model.vocabulary - 1}, not {tokens.tolist()}")
    where = None if among is None else tuple(among)
    if where is not None and not set(where) <= set(range(length)):
        raise ValueError(f"positions are 0 to {length - 1}, not {list(where)}")
    return Unmask(model, tuple(map(int, tokens)), count, rule, float(temperature), where)


@dataclass(frozen=True, eq=False)
class Unmask:
    """A request for one step of unmasking; made by `unmask`."""

    model: MaskedDiffusion
    text: Tokens
    count: int
    rule: Rule
    temperature: float
    among: tuple[int, ...] | None
    expensive: ClassVar[bool] = True
    journalled: ClassVar[bool] = True

    @property
    def batch_key(self) -> Hashable:
        """All steps by one model share a call."""
        return (Unmask, id(self.model))

    @property
    def fingerprint(self) -> Hashable:
        """What the step does, and to which text."""
        return (self.text, *self._how)

    @property
    def _how(self) -> tuple[Any, ...]:
        return (self.count, self.rule, self.temperature, self.among)

    def __repr__(self) -> str:
        return f"<{self.count} of {self.text.count(self.model.mask)} masks of {self.model!r} by {self.rule!r}>"

    def fits(self, value: Any) -> bool:
        """Whether a value is tokens of the model."""
        tokens = isinstance(value, tuple) and len(value) == len(self.text)
        return tokens and are_tokens(value, self.model.vocabulary)

    def sample_batch(self, requests: Sequence[Unmask], keys: Keys) -> Draws:
        """Draw the tokens after each step, each from its own key alone."""
        uniforms = self.model.noise(keys)
        x = torch.empty(len(requests), len(self.text), dtype=torch.long, device=self.model.device)

        def draw(request: Unmask, site: Site, rows: Any) -> Any:
            x[rows] = request.rule.draw(site, uniforms[rows])
            return request.rule.log_prob(site, x[rows])

        log_prob = _stepwise(self.model, requests, draw)
        return Draws([tuple(row) for row in x.tolist()], log_prob)

    def log_prob_batch(self, requests: Sequence[Unmask], values: Sequence[Tokens]) -> Floats:
        """Return the log-probability of each text under its request, (n,)."""
        x = torch.as_tensor(np.array(values), device=self.model.device)
        return _stepwise(self.model, requests, lambda request, site, rows: request.rule.log_prob(site, x[rows]))


def _stepwise(model: MaskedDiffusion, requests: Sequence[Unmask], ask: Callable[[Unmask, Site, Any], Any]) -> Floats:
    """Return what is asked, (n,), of the steps of requests: one call of the network, then all steps of one kind."""
    x = torch.as_tensor([request.text for request in requests], device=model.device)
    n, place = len(requests), torch.arange(x.shape[1], device=x.device)
    condition = join([model.condition] * n)
    with torch.no_grad():
        log_mu = model.log_laws(Latents(x, np.zeros(n, np.int64), 1, condition))
    kinds: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        kinds.setdefault(request._how, []).append(i)
    found = np.empty(n)
    for places in kinds.values():
        one, rows = requests[places[0]], torch.as_tensor(places, device=x.device)
        law = log_mu[rows] if one.temperature == 1.0 else (log_mu[rows] / one.temperature).log_softmax(-1)
        masked = x[rows] == model.mask
        if one.among is not None:
            masked &= torch.isin(place, torch.tensor(one.among, dtype=torch.long, device=x.device))
        nothing = torch.zeros_like(masked)
        site = Site(x[rows], law, masked, nothing, np.zeros(len(places), np.int64), one.count, model.mask)
        found[places] = ask(one, site, rows).cpu().numpy()
    return found
