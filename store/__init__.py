"""What is on disk and shared by all parts: whole-file writes, lake paths, manifest, policies."""
