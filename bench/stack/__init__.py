"""python -m bench.stack: a layer, attention x compiled x captured."""
