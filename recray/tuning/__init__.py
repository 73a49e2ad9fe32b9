"""RAY TUNE: the search space, the trials, the searchers and the tuner."""
