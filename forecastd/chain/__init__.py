"""The Allora network: wallet, messages, endpoint clients, fees and response codes.

This package talks to real nodes. It knows nothing of the local node.
"""
