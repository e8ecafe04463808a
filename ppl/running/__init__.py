"""How particles of a program run: fibers, what they await, and the waves that serve them in batches."""
