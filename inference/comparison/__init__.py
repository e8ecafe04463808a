"""Engines side by side on the same problems."""
