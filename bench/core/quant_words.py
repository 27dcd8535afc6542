"""The format of 4-bit weights, for documents and titles."""

from collections.abc import Sequence

from bench.core.document import Document

Format = tuple[int | dict[str, int], bool, bool]
"""Group size (-1: the whole row; by name where projections differ, by `layer.name` where layers do), zero points,
act-order: pykernels.LayerWeights.int4_format."""


def quant_document(of: Format | None) -> Document | None:
    """The key `quant` of a layer's document; None where the weights are dense."""
    if of is None:
        return None
    return {"format": "int4", **dict(zip(("group_size", "zero_points", "act_order"), of, strict=True))}


def _sizes(by_name: dict[str, int]) -> str:
    """`32, 64`: those that there are."""
    return ", ".join("a row" if size == -1 else str(size) for size in sorted(set(by_name.values())))


def quant_words(of: Format | None) -> str:
    """The same for a title, after the model's name; nothing where the weights are dense."""
    if of is None:
        return ""
    group_size, zeros, act_order = of
    if isinstance(group_size, dict):
        size = f"groups of {_sizes(group_size)}"
    else:
        size = "one group a row" if group_size == -1 else f"groups of {group_size}"
    return f", int4 in {size}{' with zero points' * zeros}{', act-order' * act_order}"


def quant_suffix(quant: Document | None) -> str:
    """The key `quant` of a document behind the model's name, for tables; nothing where the weights are dense."""
    if not quant:
        return ""
    size = _sizes(quant["group_size"]) if isinstance(quant["group_size"], dict) else quant["group_size"]
    size = "row" if size == -1 else size
    return f" int4 g{size}{' zeros' * quant['zero_points']}{' act-order' * quant['act_order']}"


def weights_key(of: Format | None, dense: bool, dtype: str) -> Document:
    """The key `weights` of an arm in a run of 4-bit weights: int4, or the dtype of those that were dequantised for it.
    Nothing in other runs, where all arms multiply by the same."""
    return {} if of is None else {"weights": dtype if dense else "int4"}


def dense_line(arms: Sequence[Document]) -> str:
    """Which arms of a run of 4-bit weights multiply by dequantised ones, in words; empty where none does."""
    dense = {arm["backend"]: arm["weights"] for arm in arms if arm.get("weights", "int4") != "int4"}
    if not dense:
        return ""
    return f"on the same weights in {', '.join(dict.fromkeys(dense.values()))}: {', '.join(dense)}; all others in int4"
