"""Bundles on disk: files, JSON fields, records of a manifest, canary check."""
