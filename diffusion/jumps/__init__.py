"""Jump processes over discrete states, in continuous time: rates, and correctors of their own."""
