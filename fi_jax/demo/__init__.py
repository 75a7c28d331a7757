"""The demo in the browser: a small web service around one model."""
