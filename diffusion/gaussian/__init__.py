"""Gaussian noise: its schedules and steps, generators of images and clips, mixtures whose score is known."""
