"""What texts, steps, laws and scores of a language model are, whichever model it is."""
