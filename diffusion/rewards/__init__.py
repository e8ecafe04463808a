"""Rewards of images, clips and any tensor."""
