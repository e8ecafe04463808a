"""Exact answers: finite programs enumerated, and closed forms to test engines against."""
