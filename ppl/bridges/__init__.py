"""Programs from NumPyro's models, and NumPyro's models from programs."""
