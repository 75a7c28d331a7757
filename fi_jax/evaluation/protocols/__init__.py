"""Protocols: how the answers to a family of questions are judged. Single-choice tasks differ by the table in `choice`."""
