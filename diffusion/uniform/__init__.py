"""Diffusion over tokens whose noise is a uniform token."""
