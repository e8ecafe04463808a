"""A model with some of its settings changed for the time of a pass: fewer experts, an early exit, another adapter."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from ....ppl.errors import Unsupported
from ....ppl.values.reals import whole_number
from .wrappers import FAULTS, core

ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
"""What models of transformers call the number of experts that a token goes through."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What they call the number of experts that there are."""
LAYERS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")
"""What they call the number of layers of what writes."""
_MISSING = object()


class Change(NamedTuple):
    """An entry of a dictionary, such as an object's attributes, and what it is to be for a while."""

    where: dict[str, Any]
    name: str
    value: Any


class Route(NamedTuple):
    """An attribute that so many modules of a kind have, and what it is to be in all of them."""

    kind: type
    name: str
    value: Any
    modules: int


@contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Make some changes within the block, and take them back after it."""
    before = [where.get(name, _MISSING) for where, name, _ in changes]
    try:
        for where, name, value in changes:
            where[name] = value
        yield
    finally:
        for (where, name, _), value in zip(changes, before):
            if value is _MISSING:
                where.pop(name, None)
            else:
                where[name] = value


class Varied(nn.Module):  # type: ignore[misc]
    """A model whose modules are those of another, run otherwise. It changes them for each pass, and changes them back.

    Nothing is copied: weights, hooks, and what is noticed of changes (see `Live`) are the other's. Whoever runs it
    holds the lock of the model's device (see `Live.hold`), so that no other pass comes between.

    Args:
        model: the model that is varied.
        experts: how many experts each token goes through; None: as many as in the model.
        layers: after how many layers the last norm and the head follow; None: all.
        adapter: of peft, by name, that is on; None: no adapter; ``...``: as in the model.
    """

    def __init__(
        self, model: Any, *, experts: int | None = None, layers: int | None = None, adapter: Any = ...
    ) -> None:
        super().__init__()
        experts = None if experts is None else whole_number("experts", experts)
        layers = None if layers is None else whole_number("layers", layers)
        within = model if isinstance(model, Varied) else None
        self.model: Any = model if within is None else within.model
        self.experts: int | None = within.experts if within and experts is None else experts
        self.layers: int | None = within.layers if within and layers is None else layers
        self.adapter: Any = within.adapter if within and adapter is ... else adapter
        self.training = False
        self._routes = [] if self.experts is None else _routes(self.model, self.experts)
        self._changes: list[Change] = []
        self.renew()

    def forward(self, **inputs: Any) -> Any:
        """Run the model."""
        with changed(self._changes):
            return self.model(**inputs)

    def train(self, mode: bool = True) -> Varied:
        """Do nothing: in training or not is what the model is."""
        return self

    def extra_repr(self) -> str:
        """Return what is varied."""
        given = {"experts": self.experts, "layers": self.layers}
        told = [f"{name}={value}" for name, value in given.items() if value is not None]
        return ", ".join([*told, *([] if self.adapter is ... else [f"adapter={self.adapter!r}"])])

    def renew(self) -> None:
        """Find anew what is to be changed, after a change of the model itself."""
        inner = core(self.model)
        changes = [change for route in self._routes for change in _routed(inner, route)]
        if self.experts is not None:
            changes += [
                Change(vars(config), name, _like(value, self.experts)) for config, name, value in _active(inner.config)
            ]
        if self.layers is not None:
            changes.append(_exit(inner, self.layers))
        if self.adapter is not ...:
            changes += _adapters(self.model, self.adapter)
        self._changes = changes

    def check(self) -> None:
        """Raise Unsupported where another number of experts makes no difference."""
        inner = core(self.model)
        active = [] if self.experts is None else _active(inner.config)
        if all(value == _like(value, self.experts) for _, _, value in active):
            return
        size = inner.config.get_text_config().vocab_size
        ids = torch.arange(min(8, size), device=next(inner.parameters()).device)[None]
        with torch.inference_mode():
            one, other = (run(input_ids=ids, use_cache=False).logits for run in (self.model, self))
        if torch.equal(one, other):
            raise Unsupported(
                f"another number of experts makes no difference to {type(inner).__name__}: it is dense, or does not "
                "choose them by this number"
            )


def _active(config: Any) -> list[tuple[Any, str, Any]]:
    """Return where a model's settings say how many experts are active: the settings, the name and the number."""
    text = config.get_text_config()
    parts = [text, *(part for part in vars(text).values() if isinstance(part, PreTrainedConfig))]
    return [(part, name, vars(part)[name]) for part in parts for name in ACTIVE if vars(part).get(name) is not None]


def _like(value: Any, number: Any) -> Any:
    """Return a number in the form of a setting, which may be a list with one for each layer."""
    return [number] * len(value) if isinstance(value, list | tuple) else number


def _routes(model: Any, experts: int) -> list[Route]:
    """Return what differs in a model that is made with another number of active experts.

    Two models are made of the settings, without weights, and compared: so it is found whatever routers call it.
    """
    inner = core(model)
    name = type(inner).__name__
    text = inner.config.get_text_config()
    most = next((n for name in EXPERTS if isinstance(n := getattr(text, name, None), int)), None)
    if most == 0 or not _active(inner.config):
        raise Unsupported(f"{name} has no experts, so there is no number of them to choose")
    if most is not None and experts > most:
        raise ValueError(f"{name} has {most} experts, so that {experts} of them cannot be active")
    varied = copy.deepcopy(inner.config)
    for config, setting, value in _active(varied):
        setattr(config, setting, _like(value, experts))
    try:
        with torch.device("meta"):
            plain, other = type(inner)(copy.deepcopy(inner.config)), type(inner)(varied)
    except FAULTS as error:
        raise Unsupported(f"{name} cannot be made of its settings, which tells where they are read: {error}") from error
    shapes = [[(path, weight.shape) for path, weight in made.named_parameters()] for made in (plain, other)]
    if shapes[0] != shapes[1]:
        raise Unsupported(f"{name} has other weights where {experts} experts are active")
    found: dict[tuple[type, str], list[Any]] = defaultdict(list)
    for one, two in zip(plain.modules(), other.modules()):
        for attribute, value in vars(two).items():
            if isinstance(value, int | float | tuple | list) and vars(one).get(attribute) != value:
                found[type(two), attribute].append(value)
    if any(value != values[0] for values in found.values() for value in values):
        raise Unsupported(f"the layers of {name} differ in what {experts} active experts mean")
    return [Route(kind, attribute, values[0], len(values)) for (kind, attribute), values in found.items()]


def _routed(inner: Any, route: Route) -> list[Change]:
    """Return the changes of all modules of a kind, those among them that an adapter of peft has copied."""
    found = [vars(module) for module in inner.modules() if type(module) is route.kind and route.name in vars(module)]
    if len(found) < route.modules:
        raise Unsupported(
            f"{type(inner).__name__} has {len(found)} modules of {route.kind.__name__} where its settings make "
            f"{route.modules}: the number of active experts is not known to be read in what stands in their place"
        )
    return [Change(own, route.name, route.value) for own in found]


def _exit(inner: Any, layers: int) -> Change:
    """Return the change that ends a model's stack of layers after some of them."""
    name, decoder = type(inner).__name__, inner.get_decoder()
    settings = inner.config.get_text_config(decoder=True), getattr(decoder, "config", None)
    counts = {getattr(setting, count, None) for setting in settings for count in LAYERS}
    stacks = [found for found in _lists(decoder) if len(found[2]) in counts]
    if len(stacks) != 1:
        raise Unsupported(f"the layers of {name} are not in one list, so that it cannot be left after some of them")
    ((owner, path, stack),) = stacks
    if layers > len(stack):
        raise ValueError(f"{name} has {len(stack)} layers, so that it cannot be left after {layers}")
    return Change(owner._modules, path, nn.ModuleList(list(stack)[:layers]))


def _lists(module: Any) -> Iterator[tuple[Any, str, Any]]:
    """The lists of modules in a module, none within another, each with what it belongs to and its name there."""
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleList):
            yield module, name, part
        else:
            yield from _lists(part)


def _adapters(model: Any, adapter: str | None) -> list[Change]:
    """Return the changes that switch an adapter of peft on, or all off."""
    name = type(core(model)).__name__
    layers = [module for module in model.modules() if hasattr(type(module), "_get_available_adapters")]
    known = sorted(set().union(*(layer._get_available_adapters() for layer in layers)))
    if not known:
        raise Unsupported(f"{name} has no adapters of peft: load them first, such as by model.load_adapter(path, name)")
    if adapter is not None and adapter not in known:
        raise ValueError(f"{name} has no adapter {adapter!r}, but {', '.join(map(repr, known))}")
    if any(getattr(layer, "merged_adapters", None) for layer in layers):
        raise Unsupported(f"an adapter of {name} is merged into its weights, which no variant is: unmerge it")
    if adapter is None:
        return [Change(vars(layer), "_disable_adapters", True) for layer in layers]
    return [
        change
        for layer in layers
        for change in (
            Change(vars(layer), "_active_adapter", [adapter]),
            Change(vars(layer), "_disable_adapters", False),
        )
    ]
