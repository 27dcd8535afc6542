"""The tools of bench.int4: measuring, saying what binds, validating, looking at machine code, predicting, showing."""
