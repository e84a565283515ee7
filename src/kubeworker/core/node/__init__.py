"""A node: the shell that looks at it, what it saw, the shell that changes it."""
