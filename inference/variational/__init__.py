"""Guides: programs with parameters that are fitted to a model."""
