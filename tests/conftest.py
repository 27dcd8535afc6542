"""Fixtures of several test files."""

import gc
import os
import resource

import pytest
import torch
from inputs import fork_server, small_machine
from inputs.helpers import GPU, torch_threads

# These are begun first, in this order: the longest file must not be what one worker begins when the other has ended.
LONGEST = (
    "test_ray", "test_study_chain", "test_backends", "test_stack", "test_simt_int4", "test_bench_cuda",
    "test_simt_gqa_decode", "test_install", "test_int4_validate", "test_simt_layer", "test_sweep", "test_linear_peers",
    "test_attention", "test_ab", "test_simt_gqa_head_dims", "test_gate", "test_bench_step_cuda", "test_plugins",
    "test_int4_validate_command", "test_sessions", "test_bench_layer",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """See LONGEST. The order within a file stays."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_sessionstart():
    """Tests say `cuda`, which is the current device. Drivers' processes are forked; the machine has a small cache.
    torch.compile takes the CPU's own word for its vectors, in place of a program compiled and run for each kind."""
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    fork_server.install()
    small_machine.pretend()
    if GPU.index:
        torch.cuda.set_device(GPU)


def pytest_collection_finish():
    """What was imported and collected stays: it need not be looked through each time that garbage is collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_limits():
    """A plug-in's process limits its memory, and finds what lies beside the plug-in. A test that runs its code in this
    process must do neither to those after it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with fork_server.own_path():
        yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def one_thread():
    """Small products: threads would only wait for one another."""
    with torch_threads(1):
        yield
