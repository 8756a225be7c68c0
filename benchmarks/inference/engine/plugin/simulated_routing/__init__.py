"""A plugin of vLLM that routes tokens as a benchmark asks.

It is found through PYTHONPATH. ``tables`` needs NumPy alone, and
``record`` nothing.
"""
