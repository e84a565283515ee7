"""For every test."""

# hypothesis's plugin imports it at the end of a session that did not use it. Compiling it that late, with pytest's
# rewriting and garbage of event loops about, fails now and then on CPython 3.11 with "SystemError: AST constructor
# recursion depth mismatch" (python/cpython#106905), after all tests have passed.
import hypothesis  # noqa: F401
