"""What engines stand on: the protocol, steps and chains, weights, resampling, selection, trees."""
