"""Many runs for one table: sweeps, ablations, leave-one-set-out models."""
