"""Studies: many models trained and judged for one table (leave-one-out cells, ablations)."""
