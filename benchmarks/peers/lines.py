"""The task of the line workers: an answer of some lines, each of which is worth less for each letter "e"."""

from __future__ import annotations

import math

PROMPT = "Write a poem about the rain, one short line after the other."
MAX_TOKENS = 24
"""Most tokens in a line."""
PENALTY = 0.2


def log_odds(line: str) -> float:
    """Log-odds that a line is right."""
    return -PENALTY * line.count("e")


def probability(line: str) -> float:
    """Probability that a line is right."""
    return 1.0 / (1.0 + math.exp(-log_odds(line)))
