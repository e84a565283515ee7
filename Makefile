# The two commands of the README are `make demo` and `make test`.
.PHONY: setup dev check test demo bench fmt docs chaos

setup:
	@scripts/setup runtime

dev:
	@scripts/setup dev

check: dev
	@scripts/check

fmt: dev
	@.venv/bin/ruff format src tests bench && .venv/bin/ruff check --fix src tests bench

test: dev
	@scripts/test

demo: setup
	@scripts/demo

bench: dev
	@.venv/bin/python -m bench $(if $(N),--nodes $(N) --deploy-nodes $(shell [ $(N) -lt 8 ] && echo $(N) || echo 8)) $(if $(ONLY),--only $(ONLY)) $(BENCH)

docs: dev
	@scripts/docs

chaos: dev
	@scripts/chaos
