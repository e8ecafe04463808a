"""How gradients pass through a model and its guide."""
