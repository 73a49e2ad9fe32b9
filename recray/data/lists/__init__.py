"""The lists beside ratings, of items, their links and users: decoration that never stops a run."""
