"""A local Allora node: the gRPC and websocket of a real one, over a chain that is a pure state machine on SQLite.

It verifies what a real chain verifies, in the same order and with the same codes, so what works here works there. Used by
the demo, the tests and whoever wants to try a worker without a network.
"""
