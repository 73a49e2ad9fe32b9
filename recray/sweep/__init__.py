"""A search of settings: spaces, searchers, what is on disk, and one trial. No Ray here."""
