"""Protocols: what is asked about a face, and how the answers are judged; one module a task family."""
