"""Raw ratings to the prepared data set."""
