"""The command line: thin verbs over the Python calls of the same names."""
