"""The submission ledger: its file, its read-only snapshot, and the outcome of a cycle."""
