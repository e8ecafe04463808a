"""Markov kernels on the continuous choices of paths."""
