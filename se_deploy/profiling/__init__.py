"""Session -> latency and power."""
