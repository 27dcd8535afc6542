"""One sweep over many machines: cells, shards and claims of them, controls around them, Ray."""
