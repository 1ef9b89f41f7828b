"""Run the command `occinv` as `python -m occinv`."""

import sys

from occinv.cli import main

if __name__ == "__main__":
    sys.exit(main())
