"""How far to trust a posterior: standard errors, tails of weights, copies, chains."""
