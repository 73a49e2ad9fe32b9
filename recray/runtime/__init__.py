"""Ray itself: the session, tasks, capacity, jobs, and what its failures mean."""
