"""Posteriors in files: written, read, and looked through before they are believed."""
