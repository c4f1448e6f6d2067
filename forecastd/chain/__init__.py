"""The Allora network: wallet, messages, one node's client, fees, answer codes.

Everything here speaks to a real node and knows nothing of the local one.
"""
