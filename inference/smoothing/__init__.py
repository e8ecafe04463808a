"""Smoothing: whole trajectories, given all observations, from the history of a particle filter."""
