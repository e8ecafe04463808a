"""Masked diffusion: from masks to tokens, by rules that say which are revealed when."""
