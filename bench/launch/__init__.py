"""python -m bench.launch: what every launcher costs, what a graph costs, what PDL launches gain."""
