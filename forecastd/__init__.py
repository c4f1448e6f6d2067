"""Runs forecasting models in production: one checked, signed forecast per epoch, submitted exactly once.

Nothing is imported here: a process pays only for the rooms that it enters.
"""

__version__ = "0.1.0"
