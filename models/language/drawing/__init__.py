"""How tokens are drawn: settings, laws, ends of steps, and requests on their way."""
