"""Models run in child processes, with no secrets in their environment, bounded memory and a deadline per phase."""
