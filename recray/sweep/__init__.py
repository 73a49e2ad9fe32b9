"""A search of settings: spaces, searchers, what is on disk, one trial. Ray is in team.py only."""
