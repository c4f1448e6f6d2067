"""The rolling window of each server, in memory and on disk."""
