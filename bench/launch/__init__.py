"""python -m bench.launch: what every launcher costs, what a graph costs, what programmatic launches gain."""
