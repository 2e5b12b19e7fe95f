"""One folder for each backend: session, compiler, planner, and what it can do; found by `registry`."""
