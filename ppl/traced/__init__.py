"""Programs traced by JAX: what a program is where values are symbols."""
