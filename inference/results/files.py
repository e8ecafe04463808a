"""Posteriors in files: one zip of JSON and NumPy arrays, without pickle."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ...ppl.cost import Cost
from ...ppl.sites import Site
from ..base.chain import Chain
from ..base.search_tree import ARRAYS as _TREE
from ..base.search_tree import SearchTree
from ..base.step import Step

_FORMAT = 3
"""Format 1 had no temperatures, schemes and answers; format 2 no trees. Chains may have no info."""
_FACTS = ("guarantee", "engine", "model", "seed", "stopped")
_SCALARS = ("depth", "ess", "entropy", "resampled", "temperature", "scheme")
_ARRAYS = ("ancestors", "log_weights", "log_potential", "log_twist", "done")


class _Encoder:
    """Turns values into JSON, with arrays kept aside."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}

    def encode(self, value: Any, where: str) -> Any:
        """Return JSON for a value; ``where`` names it in errors."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if np.isfinite(value) else {"~float": repr(value)}
        if isinstance(value, Site):
            return {"~site": [self.encode(item, where) for item in value]}
        if isinstance(value, list):
            return [self.encode(item, where) for item in value]
        if isinstance(value, tuple | set | frozenset):
            kind = "set" if isinstance(value, set) else type(value).__name__ if type(value) is frozenset else "tuple"
            return {f"~{kind}": [self.encode(item, where) for item in value]}
        if isinstance(value, dict):
            return {"~dict": [[self.encode(k, where), self.encode(v, where)] for k, v in value.items()]}
        if isinstance(value, np.ndarray) and value.dtype != object:
            name = f"array{len(self.arrays)}"
            self.arrays[name] = value
            return {"~array": name}
        if hasattr(value, "to_json"):
            kind = f"{type(value).__module__}:{type(value).__qualname__}"
            return {"~object": [kind, value.to_json()]}
        raise TypeError(
            f"cannot save {where}: a {type(value).__name__} is not a text, number, string, array or container of "
            "them. Return something plainer from the program, or give the class to_json() and from_json()"
        )


def _rows(choices: Any) -> Any:
    """Return choices as they are written: an array stays one, for the arrays of a list are a file each."""
    return choices if isinstance(choices, np.ndarray) and choices.dtype != object else list(choices)


def _decode(data: Any, arrays: Any) -> Any:
    if isinstance(data, list):
        return [_decode(item, arrays) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, inner),) = data.items()
    if tag == "~float":
        return float(inner)
    if tag == "~array":
        return arrays[inner]
    if tag == "~object":
        return _object(*inner)
    if tag == "~dict":
        return {_decode(k, arrays): _decode(v, arrays) for k, v in inner}
    items = [_decode(item, arrays) for item in inner]
    makers: dict[str, Any] = {"~site": lambda it: Site(*it), "~tuple": tuple, "~set": set, "~frozenset": frozenset}
    return makers[tag](items)


def _object(kind: str, data: Any) -> Any:
    module, name = kind.split(":")
    # Only our own classes are made from a file; of others, what they wrote is returned.
    if not module.startswith("feynkac."):
        return data
    return getattr(importlib.import_module(module), name).from_json(data)


def save(posterior: Any, path: str | os.PathLike[str]) -> None:
    """Write a posterior to a file, whole or not at all."""
    encoder = _Encoder()
    chains = []
    for c, chain in enumerate(posterior.chains):
        steps = []
        for t, step in enumerate(chain.steps if chain.tree is None else ()):  # a tree tells its steps
            for name in _ARRAYS:
                encoder.arrays[f"chain{c}/step{t}/{name}"] = getattr(step, name)
            steps.append(
                {
                    "scalars": [getattr(step, name) for name in _SCALARS],
                    "log_evidence": encoder.encode(step.log_evidence, "log_evidence"),
                    "choices": encoder.encode(_rows(step.choices), f"the choices of step {t}"),
                }
            )
        for name in _TREE if chain.tree is not None else ():
            encoder.arrays[f"chain{c}/tree/{name}"] = getattr(chain.tree, name)
        encoder.arrays[f"chain{c}/log_weights"] = chain.log_weights
        encoder.arrays[f"chain{c}/complete"] = chain.complete
        chains.append(
            {
                "log_evidence": encoder.encode(chain.log_evidence, "log_evidence"),
                "answers": encoder.encode(chain.answers, f"the answers of chain {c}"),
                "steps": steps,
                "serial": chain.serial,
                "info": encoder.encode(dict(chain.info), f"the info of chain {c}"),
                "tree": chain.tree and encoder.encode(_rows(chain.tree.choices), f"the choices of chain {c}"),
            }
        )
    meta = {name: getattr(posterior, name) for name in _FACTS}
    head = {
        "format": _FORMAT,
        "kind": "feynkac posterior",
        "values": [encoder.encode(value, f"the value of particle {i}") for i, value in enumerate(posterior.values)],
        "chains": chains,
        "cost": dataclasses.asdict(posterior.cost),
        "ranking": posterior.ranking,
        **meta,
    }
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("posterior.json", json.dumps(head))
            for name, array in encoder.arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a posterior from a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is corrupt, no posterior, or of a newer format.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                head = json.loads(archive.read("posterior.json"))
                form = head["format"] if head["kind"] == "feynkac posterior" else 0
                if 0 < form <= _FORMAT:
                    return _read(archive, head)
        except Exception as error:  # a damaged archive fails in many ways
            raise ValueError(f"{name} is not a saved posterior, or it is corrupt: {error!r}") from error
    raise ValueError(f"{name} is of format {form}; this version reads up to {_FORMAT}")


def _read(archive: zipfile.ZipFile, head: dict[str, Any]) -> dict[str, Any]:
    arrays = {
        name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
        for name in archive.namelist()
        if name.endswith(".npy")
    }
    chains = []
    for c, chain in enumerate(head["chains"]):
        steps = []
        for t, step in enumerate(chain["steps"]):
            fields = dict(zip(_SCALARS, step["scalars"])) | {n: arrays[f"chain{c}/step{t}/{n}"] for n in _ARRAYS}
            log_evidence = _decode(step["log_evidence"], arrays)
            steps.append(Step(log_evidence=log_evidence, choices=_decode(step["choices"], arrays), **fields))
        log_weights, complete = arrays[f"chain{c}/log_weights"], arrays[f"chain{c}/complete"]
        log_evidence, answers = (_decode(chain.get(name), arrays) for name in ("log_evidence", "answers"))
        tree = None
        if chain.get("tree") is not None:
            choices = _decode(chain["tree"], arrays)
            tree = SearchTree(**{name: arrays[f"chain{c}/tree/{name}"] for name in _TREE}, choices=choices)
        made = tuple(steps) if tree is None else tree.steps
        info = _decode(chain["info"], arrays) if "info" in chain else {}
        chains.append(Chain(log_weights, complete, log_evidence, made, answers, tree, info, chain.get("serial", False)))
    return {
        "values": tuple(_decode(value, arrays) for value in head["values"]),
        "chains": tuple(chains),
        "cost": Cost(**head["cost"]),
        **{name: head[name] for name in _FACTS},
        "ranking": head.get("ranking", "weight"),
    }
