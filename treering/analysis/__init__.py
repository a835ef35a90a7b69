"""The laboratory: reads records only, never imports torch."""
