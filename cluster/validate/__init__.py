"""Checks every file of this folder without a cloud account, a cluster or a container engine."""
