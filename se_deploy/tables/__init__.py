"""Results as tables that a person likes to read; imported by a command when it has something to show."""
