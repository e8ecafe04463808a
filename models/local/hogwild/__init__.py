"""Texts that are written side by side, each of which sees the others' tokens."""
