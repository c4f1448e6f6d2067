"""From candles or a fleet's history to a model bundle, in a supervised child process."""
