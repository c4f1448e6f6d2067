"""How much each server is at risk, and why."""
