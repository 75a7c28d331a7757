"""The networks: pure linen modules that know neither data nor training."""
