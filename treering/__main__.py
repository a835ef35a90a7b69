"""`python -m treering`."""

import sys

from treering.cli import main

if __name__ == "__main__":
    sys.exit(main())
