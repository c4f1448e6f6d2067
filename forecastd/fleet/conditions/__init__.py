"""Alert conditions: which are open, and who is notified."""
