"""From spans to credit: SQL files, and the engine that runs them incrementally."""
