"""Fleet models, which forecast many metrics of many servers at once: manifest, bundle, engines, data set, training."""
