"""The fleet's HTTP API: who may ask, what may come in, and what goes out. The fleet itself knows nothing of HTTP."""
