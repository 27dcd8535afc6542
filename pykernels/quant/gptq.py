"""GPTQ checkpoints, v1 and v2, as AutoGPTQ and GPTQModel write them.

    qweight  int32   [K / 8, N]    nibbles along K, in order
    qzeros   int32   [G, N / 8]    nibbles along N, in order: the zero point (v2), or one less (v1)
    scales   float16 [G, N]
    g_idx    int32   [K]           every column's group; k // group_size unless act-order moved it

K is in_features, N out_features, G = ceil(K / group_size) groups.

v1 subtracts 0x11111111 from whole words of qzeros, and its readers add it again. So a zero point of 0 borrows from
the nibble above; adding to the whole word gives it back, which is what is done here.
"""

import torch
from torch import Tensor

from pykernels.quant.packing import pack_words, unpack_words
from pykernels.quant.weight import FLOATS, QuantizedWeight, check, resolve_group_size

_ONE_IN_EVERY_NIBBLE = 0x11111111


def _shift_zeros(qzeros: Tensor, by: int) -> Tensor:
    # In int64 and back: int32 words wrap as the writers' do.
    shifted = (qzeros.long() + by) & 0xFFFFFFFF
    return torch.where(shifted >= 2**31, shifted - 2**32, shifted).to(torch.int32)


def pack(weight: QuantizedWeight, version: int) -> dict[str, Tensor]:
    """The four tensors of a GPTQ layer. `version` is 1 or 2.

    Raises ValueError unless in_features and out_features are multiples of 8. Scales become float16.
    """
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version!r}")
    for name, size in (("in_features", weight.in_features), ("out_features", weight.out_features)):
        if size % 8:
            raise ValueError(f"{name} must be a multiple of 8 for GPTQ, got {size}")
    qzeros = pack_words(weight.explicit_zeros().T)
    return {
        "qweight": pack_words(weight.q).T.contiguous(),
        "qzeros": _shift_zeros(qzeros, -_ONE_IN_EVERY_NIBBLE) if version == 1 else qzeros,
        "scales": weight.scales.T.to(torch.float16).contiguous(),
        "g_idx": weight.explicit_g_idx(),
    }


def unpack(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None = None,
    *,
    version: int,
    group_size: int | None = None,
) -> QuantizedWeight:
    """A layer in plain form. `version` is 1 or 2; :func:`decide_version` tells them apart.

    Shapes as in the module's head. group_size may be left out where the number of groups divides K.
    Raises ValueError, one line, where shapes or dtypes do not fit.
    """
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version!r}")
    if qweight.dim() != 2 or scales.dim() != 2:
        raise ValueError(f"qweight and scales must be matrices, got {list(qweight.shape)} and {list(scales.shape)}")
    in_features, (n_groups, out_features) = 8 * qweight.shape[0], scales.shape
    if out_features % 8:
        raise ValueError(f"scales must be of a multiple of 8 columns, got {out_features}")
    check("qweight", qweight, (in_features // 8, out_features), (torch.int32,))
    check("qzeros", qzeros, (n_groups, out_features // 8), (torch.int32,))
    check("scales", scales, (n_groups, out_features), FLOATS)
    if version == 1:
        qzeros = _shift_zeros(qzeros, _ONE_IN_EVERY_NIBBLE)
    return QuantizedWeight(
        q=unpack_words(qweight.T, in_features),
        scales=scales.T.contiguous(),
        zeros=unpack_words(qzeros, out_features).T.contiguous(),
        group_size=resolve_group_size(group_size, in_features, n_groups),
        g_idx=None if g_idx is None else g_idx.to(torch.int32),
    )


def symmetric_version(qzeros: Tensor) -> int | None:
    """1 or 2 where every zero is 7 or every one is 8, as symmetric layers store them; None where they are not."""
    nibbles = unpack_words(qzeros, 8 * qzeros.shape[1])
    first = int(nibbles[0, 0])
    return {7: 1, 8: 2}.get(first) if bool((nibbles == first).all()) else None


def decide_version(qweight: Tensor, qzeros: Tensor, g_idx: Tensor | None = None) -> int | None:
    """What one layer says of its version by its data alone: 1 or 2, None where it does not tell. It may be wrong: a
    matrix that lies off zero by a third of its deviation says the other (pykernels.quant.folder.gptq_version).

    Symmetric layers store 7 everywhere (v1) or 8 (v2). Else: a trained weight is near zero on average, so the mean of
    q minus the stored zero is near 0 where the true zero is stored and near 1 where it is one less. The mean must
    lie five standard errors, and at least a quarter of a step, from the middle.
    """
    out_features, in_features, n_groups = qweight.shape[1], 8 * qweight.shape[0], qzeros.shape[0]
    stored = unpack_words(qzeros, out_features)
    if version := symmetric_version(qzeros):
        return version
    if g_idx is None:
        groups = torch.arange(in_features, device=qweight.device) // -(-in_features // n_groups)
    else:
        groups = g_idx.long()
    offsets = unpack_words(qweight.T, in_features).float() - stored.T.float()[:, groups]
    mean = float(offsets.double().mean())
    standard_error = float(offsets.double().std()) / offsets.numel() ** 0.5
    if abs(mean - 0.5) < max(0.25, 5 * standard_error):
        return None
    return 1 if mean > 0.5 else 2
