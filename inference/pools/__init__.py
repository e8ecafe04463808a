"""Engines that finish independent runs, then choose among them."""
