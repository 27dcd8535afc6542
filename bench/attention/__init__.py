"""python -m bench.attention: attention alone, in every backend."""
