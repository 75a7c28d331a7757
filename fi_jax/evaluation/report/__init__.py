"""The report: one self-contained HTML page about evaluations and training runs."""
