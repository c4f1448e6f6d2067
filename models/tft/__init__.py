"""The Temporal Fusion Transformer."""
