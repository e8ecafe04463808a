"""Runs that survive: what models, rewards and functions answered, in a file, to be gone on from or played again."""
