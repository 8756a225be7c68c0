"""Algorithms for Composer's trainer, which change what is trained."""
