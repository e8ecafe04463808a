"""Steps of generation as kernels: lines and sentences, drafted, side by side, within a budget."""
