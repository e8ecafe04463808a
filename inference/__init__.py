"""Engines (one algorithm, one file), the `infer` that runs them, and the posterior that they leave.

Engines see a model through the contract of `ppl.model` alone.
"""
