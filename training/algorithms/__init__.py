"""One file a method: its equation, its source, its loss."""
