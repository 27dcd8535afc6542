"""python -m launchtax: the command `launchtax`."""

import sys

from launchtax import main

if __name__ == "__main__":
    sys.exit(main())
