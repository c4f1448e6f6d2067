"""The forecast of the whole fleet, by the model and by the heuristic."""
