"""Many runs: which configurations (expressions), where they run (runners), and what came out (tables)."""
