"""Sparse upcycling of language models as a plugin of LLM Foundry.

Installing the distribution registers everything by entry points; importing
this package registers and loads nothing.
"""

__version__ = '0.1.0'
