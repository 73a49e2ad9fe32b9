"""recray: from raw ratings to a trained, measured and served recommender on any Ray cluster."""

__version__ = "0.1.0"
