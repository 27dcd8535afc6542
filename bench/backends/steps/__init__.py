"""What drives a whole decode step: the arms of bench.step, bench.ab and bench.sweep."""
