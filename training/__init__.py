"""From tables of samples to better policies: losses, the loop, the gate."""
