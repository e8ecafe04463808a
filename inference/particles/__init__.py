"""Engines that carry a weighted population from step to step."""
