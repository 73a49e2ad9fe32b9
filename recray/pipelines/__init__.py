"""Several stages in a row: up, pipeline, refresh, a search with its final test."""
