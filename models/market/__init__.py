"""Market models: manifest, bundle, data set, engine, training."""
