"""python -m bench: the drivers, one line each; `python -m bench NAME ...` is `python -m bench.NAME ...`."""

import sys

from bench.drivers import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
