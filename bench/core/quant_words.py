"""The format of 4-bit weights, for documents and titles."""

from bench.core.document import Document

Format = tuple[int, bool, bool]
"""Group size (-1: the whole row), zero points, act-order: pykernels.LayerWeights.int4_format."""


def quant_document(of: Format | None) -> Document | None:
    """The key `quant` of a layer's document; None where the weights are dense."""
    if of is None:
        return None
    return {"format": "int4", **dict(zip(("group_size", "zero_points", "act_order"), of, strict=True))}


def quant_words(of: Format | None) -> str:
    """The same for a title, after the model's name; nothing where the weights are dense."""
    if of is None:
        return ""
    group_size, zeros, act_order = of
    size = "one group a row" if group_size == -1 else f"groups of {group_size}"
    return f", int4 in {size}{' with zero points' * zeros}{', act-order' * act_order}"
