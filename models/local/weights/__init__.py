"""A model of transformers itself: how it is loaded, looked through, watched, packed and varied."""
