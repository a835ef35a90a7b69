"""The embedded default: a small study over text that every machine with Treering holds."""
