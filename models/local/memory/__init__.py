"""What a local model remembers of histories: where it is held, once or for each, and what goes when it is short."""
