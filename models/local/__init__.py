"""Language models of transformers, run here: how they do what texts, steps and scores ask of them."""
