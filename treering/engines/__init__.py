"""What runs the cells of a study. A cell is a process: `python -m treering run`."""
