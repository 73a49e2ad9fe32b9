"""The Python interface: functions that return handles."""
