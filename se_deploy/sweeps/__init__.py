"""Many runs: which tasks there are, and who works on them: processes of this machine, or a Ray cluster.

A task is a function from folders to a folder, named by what it computes; what is in the folders is its own
business. So a task can run anywhere, and two tasks of one name are one.
"""
