"""launchtax's decode kernels: ops, their reference, the layer made of them, and the runtime that times it."""

from pathlib import Path

import torch

_library = Path(__file__).parent / "libpykernels_torch.so"
if not _library.exists():
    raise ImportError(f"pykernels is not built: {_library.name} is missing; run `make build` (or pip install .)")
torch.ops.load_library(str(_library))

# The library first: ops.py takes its handles from it.
from pykernels import dispatch, models, ops, plans, quant, reference, runtime  # noqa: E402
from pykernels.calibrate import Phi, calibrate_phi, score_rows  # noqa: E402
from pykernels.layer import DecodeLayer  # noqa: E402
from pykernels.model import DecodeModel  # noqa: E402
from pykernels.quant import Int4Weight  # noqa: E402
from pykernels.version import __version__  # noqa: E402
from pykernels.weights import LayerWeights, ModelWeights  # noqa: E402

plans.take_from_environment()

__all__ = [
    "DecodeLayer",
    "DecodeModel",
    "Int4Weight",
    "LayerWeights",
    "ModelWeights",
    "Phi",
    "__version__",
    "calibrate_phi",
    "dispatch",
    "models",
    "ops",
    "plans",
    "quant",
    "reference",
    "runtime",
    "score_rows",
]
