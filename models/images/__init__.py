"""Images as tokens, written one after another by a language model of their own."""
