"""The language and the contract: programs, effects, keys, scores, distributions, handlers, oracles.

It stands alone: nothing here imports an engine or a model.
"""
