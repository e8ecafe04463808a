"""Engines that reach their target from the prior by degrees."""
