"""Driftway beside its peers. `python -m benchmarks.NAME [--quick] [--json FILE]` measures, `python -m benchmarks.results` reports."""
