"""From batches to trained leaves: losses, step, state, checkpoints, loop."""
