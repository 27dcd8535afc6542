"""Small runs of bench.attention, and what is read from their documents."""

import json

SMALL = ["--model=tiny", "--device=cpu", "--ctx=33,64", "--batch=1,2", "--calls=4", "--warmup=1", "--l2=warm"]
HERE = [*SMALL, "--sessions=0"]
ONE = ["--model=tiny", "--device=cpu", "--ctx=16", "--batch=1", "--calls=2", "--warmup=0", "--l2=warm",
       "--backend=native,sdpa"]  # fmt: skip


def load(path):
    """The document that a run wrote."""
    return json.loads(path.read_text())


def arms(document):
    """Its arms by (shape, backend, mode)."""
    return {(arm["shape"], arm["backend"], arm["mode"]): arm for arm in document["arms"]}
