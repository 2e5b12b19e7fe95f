"""The JSON objects that this tool writes and reads, each one type."""
