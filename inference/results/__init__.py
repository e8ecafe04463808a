"""The posterior: what an engine found, how far it can be trusted, and how it is kept."""
