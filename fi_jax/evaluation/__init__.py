"""From answers to numbers: protocols, metrics, tables."""
