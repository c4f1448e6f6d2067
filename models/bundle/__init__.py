"""A bundle on disk: files, fields, records, canary."""
