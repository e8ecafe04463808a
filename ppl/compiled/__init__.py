"""Compiled programs: a scan whose step JAX can trace runs as arrays, with no object for each particle."""
