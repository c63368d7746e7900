"""One flat script per claim: `python -m experiments.NAME [--quick] [--json FILE]`."""
