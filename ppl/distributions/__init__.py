"""Laws that programs draw from: our own light ones, and those of SciPy, PyTorch and NumPyro."""
