# The two commands of the README are `make demo` and `make test`.
.PHONY: setup dev check test demo bench fmt docs chaos

setup:
	@scripts/setup runtime

dev:
	@scripts/setup dev

check: dev
	@scripts/check

fmt: dev
	@.venv/bin/ruff format src tests && .venv/bin/ruff check --fix src tests

test: dev
	@scripts/test

demo: setup
	@scripts/demo

bench: dev
	@.venv/bin/python tests/bench/bench.py

docs: dev
	@scripts/docs

chaos: dev
	@scripts/chaos
