"""Pictures by matplotlib: each function takes plain results and gives a Figure."""
