"""One file a released data set: its layout and quirks -> records."""
