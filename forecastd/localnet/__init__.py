"""A local Allora node: the gRPC, REST and websocket of a real node, over a chain that is a pure state machine on
SQLite.

It verifies what a real chain verifies, in the same order and with the same codes. The demo and the tests use it, and
anyone can use it to try a worker without a network.
"""
