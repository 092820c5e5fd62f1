# One command before a push; CI runs the same.
.PHONY: check format screenshots bench soak

check:
	uv run ruff format --check
	uv run ruff check
	uv run mypy
	uv run lint-imports
	uv run pytest

format:
	uv run ruff format
	uv run ruff check --fix

screenshots:
	uv run --group screenshots python screenshots/make.py

bench:
	for bench in first_paint ingest live chart memory kill smoke; do uv run python -m tests.bench.bench_$$bench || exit 1; done

# Two hundred rounds of kills at random moments: half an hour.
soak:
	COMPOSER_KILL_ROUNDS=100 uv run pytest tests/faults/test_cloud_kills.py
