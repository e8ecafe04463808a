"""The task of the workers of JSON: a small object under a schema, after a chat's prompt."""

from __future__ import annotations

import json

PROMPT = (
    "<|im_start|>user\nName a city in England and say whether it often rains there. Answer with JSON alone, as "
    '{"city": …, "rainy": …}.<|im_end|>\n<|im_start|>assistant\n'
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "rainy": {"type": "boolean"}},
    "required": ["city", "rainy"],
    "additionalProperties": False,
}


def valid(string: str) -> bool:
    """Whether a string is JSON under the schema."""
    try:
        found = json.loads(string)
    except ValueError:
        return False
    return (
        isinstance(found, dict)
        and set(found) == {"city", "rainy"}
        and isinstance(found["city"], str)
        and len(found["city"]) <= 20
        and isinstance(found["rainy"], bool)
    )


def summary(strings: list[str], weights: list[float], log_z: float, tokens: int) -> dict:
    """What a run found: the number of texts alive, the valid among them, log Ẑ and the tokens sampled."""
    alive = [string for string, weight in zip(strings, weights) if weight > 0]
    return {"alive": len(alive), "valid": sum(map(valid, alive)), "log_z": log_z, "sampled": tokens}
