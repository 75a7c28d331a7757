"""`python -m fi_jax` is the same program as `fi-jax`."""

from fi_jax.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
