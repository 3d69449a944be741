"""What every command does alike: errors, configuration, listeners, progress, logging."""
