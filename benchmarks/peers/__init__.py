"""What the collector's benchmark drives, and what it drives it with."""
