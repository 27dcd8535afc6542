"""python -m bench.call: the ladder of anybody's code; and bench.measure(), the same from Python."""

from bench.call.report import Report, measure

__all__ = ["Report", "measure"]
