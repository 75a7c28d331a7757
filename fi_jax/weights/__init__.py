"""Parameters in and out of other formats."""
