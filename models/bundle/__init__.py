"""Bundles on disk: files, arrays, JSON fields, the manifest of any kind, canary check."""
