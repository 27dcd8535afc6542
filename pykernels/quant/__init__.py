"""4-bit weights: the checkpoint formats in and out, a quantiser, and the layout of the int4 kernels.

``Int4Weight`` is what the kernels read; ``QuantizedWeight`` is the plain form between it and the formats of the
modules ``gptq``, ``awq`` and ``compressed_tensors``, each with ``pack`` and ``unpack``.
"""

from pykernels.quant import awq, compressed_tensors, exl2, gptq
from pykernels.quant.exl2 import Exl2Weight
from pykernels.quant.folder import PARTS, Quantization, quantization_of, read_quantized
from pykernels.quant.int4_weight import Int4Weight
from pykernels.quant.nf4 import Nf4Weight
from pykernels.quant.round_to_nearest import round_to_nearest
from pykernels.quant.weight import QuantizedWeight, equal

__all__ = [
    "PARTS",
    "Exl2Weight",
    "Int4Weight",
    "Nf4Weight",
    "Quantization",
    "QuantizedWeight",
    "awq",
    "compressed_tensors",
    "equal",
    "exl2",
    "gptq",
    "quantization_of",
    "read_quantized",
    "round_to_nearest",
]
