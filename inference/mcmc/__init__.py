"""Engines that run Markov chains over whole paths."""
