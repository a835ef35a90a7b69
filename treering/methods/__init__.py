"""The shelf: one method, one file, one test that is its definition."""
