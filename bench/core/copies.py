"""How many copies of the weights a cold run rotates through, and how many layers or calls of an op a sample holds."""

import torch

from bench.core import floors
from bench.core.environment import last_level_cache_bytes
from bench.core.samplers import steps_for
from pykernels.layer import available_bytes

# Each copy is made, recorded, compiled and captured for every arm, which takes the same time however small it is: an op
# some milliseconds, a layer on a CPU 0.1 s for torch's dispatcher to trace it and some seconds where it is compiled.
MOST_OPS = 64
_MOST_LAYERS = {"cpu": 8, "cuda": 16}

# Of the memory that is available.
_MEMORY_SHARE = 0.25

# Eight layers last half a millisecond and more: the microsecond or two of an event are lost in them.
_CUDA_LAYERS = 8

# What a kernel takes beside its bytes, for an estimate.
_CUDA_LEAST_US = 2.0


def weight_copies(n_bytes: int, l2: str, device: torch.device, most: int = MOST_OPS) -> int:
    """Copies of weights of that many bytes to rotate through, so that a step finds none of its own in the last-level
    cache; with l2 == "warm" one.

    One where there are no weights to speak of: activations are warm in any decode step. At most `most`, and no more
    than a quarter of the memory that is available holds: the copies of a small model may fit the cache (partly_warm).
    """
    cache = last_level_cache_bytes(device)
    if l2 == "warm" or n_bytes >= 2 * cache or n_bytes == 0:
        return 1
    held = int(_MEMORY_SHARE * available_bytes(device)) // n_bytes
    return max(min(2 * cache // n_bytes + 2, most, held), 1)


def layer_copies(n_bytes: int, l2: str, device: torch.device) -> int:
    """weight_copies() of a layer."""
    return weight_copies(n_bytes, l2, device, _MOST_LAYERS[device.type])


def partly_warm(n_bytes: int, copies: int, l2: str, device: torch.device) -> bool:
    """Whether a step that is to be cold may find its weights in the cache: the copies take less than twice its size."""
    return l2 == "cold" and 0 < n_bytes * copies < 2 * last_level_cache_bytes(device)


def layers_a_sample(given: int, copies: int, device: torch.device) -> int:
    """--repeats, or where that is 0 one step on a CPU, and on a GPU eight or as many more as there are copies."""
    if given:
        return given
    return _CUDA_LAYERS + -_CUDA_LAYERS % copies if device.type == "cuda" else 1


def steps_a_sample(given: int, n_bytes: int, copies: int, spec_gbs: float | None, device: torch.device) -> int:
    """--repeats, or where that is 0 one step on a CPU, and on a GPU as many as last half a millisecond. n_bytes: of a
    step."""
    if given:
        return given
    if device.type != "cuda":
        return 1
    return steps_for(floors.microseconds(n_bytes, spec_gbs or 1000.0) + _CUDA_LEAST_US, copies)
