"""Values of any kind as named columns of numbers and texts."""
