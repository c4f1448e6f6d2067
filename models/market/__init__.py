"""Market models, which forecast the log-return of one price: manifest, bundle, engine, data set, training."""
