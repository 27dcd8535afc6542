"""A decoding loop in a graph on a GPU: the tokens that a graph replayed a step at a time gives, bit for bit."""

import numpy as np
import pytest
import torch

import pykernels as pk
from bench.backends.steps.drivers import NativeDriver, NativeLoopDriver
from pykernels.layer import OP_LABELS

pytestmark = pytest.mark.skipif(
    pk.runtime.graph_loop_reason() is not None, reason=f"graph-loop {pk.runtime.graph_loop_reason()}"
)

TINY = pk.models.get("tiny")
START, SLOTS = 40, 80


def model_of(batch: int) -> pk.DecodeModel:
    return pk.DecodeModel(TINY, pk.ModelWeights.random(TINY, device="cuda"), SLOTS, batch, device="cuda")


def begin(model: pk.DecodeModel, position: int = START) -> None:
    """The same token at the same position, and nothing in the cache from there on."""
    model.token.copy_(torch.arange(model.batch) * 37 + 5)
    model.set_position(position)
    for layer in model.layers:
        for cache in (layer.k_cache, layer.v_cache):
            cache[:, :, position:] = float("nan")
    model.poison()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fusion", OP_LABELS)
def test_one_launch_decodes_the_tokens_that_a_graph_does(fusion, batch):
    steps, model = 24, model_of(batch)
    stream = torch.cuda.current_stream().cuda_stream
    program = model.program(fusion)
    graph = pk.runtime.CudaGraph([program])
    begin(model)
    expected = []
    for _ in range(steps):
        graph.replay(stream)
        expected.append(model.token.clone())
    logits = model.logits.clone()
    rows = [cache.clone() for layer in model.layers for cache in (layer.k_cache, layer.v_cache)]
    assert len(torch.stack(expected).unique()) >= 8, "a sequence that repeats itself shows nothing"

    loop = pk.runtime.GraphLoop(program, steps, model.token)
    assert loop.kernels == len(program) + 1
    for _ in range(2):  # a launch leaves the loop fit for the next
        begin(model)
        loop.run(stream)
        assert torch.equal(loop.tokens, torch.stack(expected)) and torch.equal(model.token, expected[-1])
        assert torch.equal(model.logits, logits)
        for cache, row in zip((c for layer in model.layers for c in (layer.k_cache, layer.v_cache)), rows, strict=True):
            assert torch.equal(cache[:, :, : START + steps], row[:, :, : START + steps])
        assert model.position.tolist() == [START + steps] * batch
        step_us = loop.step_us()
        assert step_us.shape == (steps,) and (step_us >= 0).all() and step_us.sum() > 0


def test_a_loop_of_one_step_and_one_past_the_cache():
    model = model_of(1)
    stream = torch.cuda.current_stream().cuda_stream
    program = model.program("block")
    begin(model)
    program.run(stream)
    token = model.token.clone()
    one = pk.runtime.GraphLoop(program, 1, model.token)
    begin(model)
    one.run(stream)
    assert torch.equal(one.tokens[0], token) and model.position.tolist() == [START + 1]
    past = pk.runtime.GraphLoop(program, 8, model.token)
    begin(model, SLOTS - 4)
    past.run(stream)
    assert model.position.tolist() == [SLOTS - 1], "the last slot is rewritten, and nothing beyond"


def test_the_driver_takes_the_steps_of_mode_graph():
    model = model_of(1)
    tokens, logits = [], []
    with torch.inference_mode():
        drivers = [NativeDriver(model, "block", "graph"), NativeLoopDriver(model, "block")]
        for driver in drivers:
            begin(model)
            samples_us = np.concatenate([driver.run(2), driver.run(5)])
            assert samples_us.shape == (7,) and (samples_us > 0).all()
            tokens.append(model.token.clone())
            logits.append(driver.logits().clone())
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(logits[0], logits[1])
    host = drivers[1].host_sampler()
    assert host is not None and (host(4) > 0).all()
