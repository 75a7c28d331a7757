"""Procedural faces drawn in code, with exact labels and masks."""
