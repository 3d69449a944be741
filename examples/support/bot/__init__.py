"""The support desk's bot."""
