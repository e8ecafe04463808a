"""What fitting a guide makes small or large: an objective in a file."""
