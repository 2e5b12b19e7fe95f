"""The verbs, one a module and one function a verb: each reads like the sentence it does.

They parse nothing and print nothing; `from se_deploy import export` is how others get them.
"""
