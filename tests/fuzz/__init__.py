"""Fuzzing: every reader of other people's files, what it is fed, and how a case is judged."""
