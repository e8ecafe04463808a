"""Language models behind servers and engines: what draws whole steps elsewhere, and tells log-probabilities of them."""
