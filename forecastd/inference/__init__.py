"""From a model bundle to a checked forecast, in supervised child processes."""
