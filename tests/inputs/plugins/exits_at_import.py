"""A plug-in whose import looks like a bad argument, and is none."""

import sys

sys.exit(2)
