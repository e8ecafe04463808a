"""Engines that grow a tree of partial runs."""
