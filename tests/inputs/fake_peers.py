"""Libraries that are not here, with their documented signatures and attention in plain torch behind them.

So an adapter's layouts, lengths and appended rows meet the reference on a machine without the library or a GPU.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

# Those of the libraries in vLLM 0.25.1.
FA2_SCHEMA = (
    "fwd_kvcache(Tensor! q, Tensor kcache, Tensor vcache, Tensor? k, Tensor? v, Tensor? seqlens_k, "
    "Tensor? rotary_cos, Tensor? rotary_sin, Tensor? cache_batch_idx, Tensor? leftpad_k, Tensor? block_table, "
    "Tensor? alibi_slopes, Tensor!? out, float softmax_scale, bool is_causal, int window_size_left, "
    "int window_size_right, float softcap, bool is_rotary_interleaved, int num_splits) -> Tensor[]"
)
FA3_SCHEMA = (
    "fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k, "
    "int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k, "
    "Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, "
    "Tensor? v_descale, float softmax_scale, bool is_causal, int window_size_left, int window_size_right, "
    "float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, "
    "int sm_margin, Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"
)
FA3_PLAN_SCHEMA = (
    "get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k, "
    "int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size, "
    "int max_seqlen_k_new, bool is_causal, int window_size_left, int window_size_right, bool has_softcap, "
    "int num_splits, bool? pack_gqa, int sm_margin) -> Tensor"
)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """One sequence: q [n_heads, head_dim], k, v [kv_len, n_kv_heads, head_dim] -> like q. Float64 inside."""
    group = q.shape[0] // k.shape[1]
    keys, values = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("hd,nhd->hn", q.double(), keys) * (scale or q.shape[1] ** -0.5)
    return torch.einsum("hn,nhd->hd", scores.softmax(-1), values).to(q.dtype)


def batched(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None = None) -> Tensor:
    """FlashAttention's layout: q [batch, 1, n_heads, head_dim], caches [batch, slots, n_kv_heads, head_dim]."""
    assert q.shape[1] == 1 and lengths.dtype == torch.int32 and lengths.shape == q.shape[:1]
    assert k_cache.shape == v_cache.shape and k_cache.stride(-1) == 1 and k_cache.shape[0] == q.shape[0]
    rows = [attention(q[b, 0], k_cache[b, :n], v_cache[b, :n], scale) for b, n in enumerate(lengths.tolist())]
    return torch.stack(rows).unsqueeze(1)


def flash_attn() -> SimpleNamespace:
    """The package of FlashAttention-2."""

    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, *, cache_seqlens=None, num_splits=0):
        assert k is None and v is None and num_splits == 0
        return batched(q, k_cache, v_cache, cache_seqlens)

    return SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)


def flash_attn_interface() -> SimpleNamespace:
    """The module of FlashAttention-3, whose metadata is made for one shape of cache."""

    def get_scheduler_metadata(
        batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens, qkv_dtype
    ):
        assert cache_seqlens.shape == (batch_size,) and qkv_dtype.is_floating_point
        return torch.tensor([batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim])

    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, *, cache_seqlens=None, scheduler_metadata=None):
        batch, slots, kv_heads, dim = k_cache.shape
        assert scheduler_metadata.tolist() == [batch, 1, slots, q.shape[2], kv_heads, dim]
        return batched(q, k_cache, v_cache, cache_seqlens)

    return SimpleNamespace(
        get_scheduler_metadata=get_scheduler_metadata, flash_attn_with_kvcache=flash_attn_with_kvcache
    )


def flash_attn_cute() -> SimpleNamespace:
    """The module of FlashAttention-4 (4.0.0b36): `seqused_k` says how much of each cache is used."""

    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
        softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1,
        pack_gqa=None,
    ):  # fmt: skip
        assert (cu_seqlens_q, cu_seqlens_k, page_table, causal, window_size) == (None, None, None, False, (None, None))
        assert (max_seqlen_q, max_seqlen_k) == (1, k.shape[1])
        return batched(q, k, v, seqused_k, softmax_scale), None

    return SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)


def fa2_ops() -> torch.library.Library:
    """torch.ops._vllm_fa2_C, until it is destroyed."""
    library = torch.library.Library("_vllm_fa2_C", "DEF")
    library.define(FA2_SCHEMA)

    def fwd_kvcache(q, kcache, vcache, k, v, seqlens_k, *rest):
        scale, causal, left, right, softcap = rest[7:12]
        assert (k, v, causal, left, right, softcap, rest[-1]) == (None, None, False, -1, -1, 0.0, 0)
        assert all(value is None for value in rest[:7])
        return [batched(q, kcache, vcache, seqlens_k, scale), q.new_zeros(1)]

    library.impl("fwd_kvcache", fwd_kvcache, "CPU")
    return library


def fa3_ops() -> torch.library.Library:
    """torch.ops._vllm_fa3_C, until it is destroyed."""
    library = torch.library.Library("_vllm_fa3_C", "DEF")
    library.define(FA3_SCHEMA)
    library.define(FA3_PLAN_SCHEMA)
    names = [words.split()[-1] for words in FA3_SCHEMA[4 : FA3_SCHEMA.index(")")].split(",")]

    def plan(batch_size, max_seqlen_q, max_seqlen_k, num_heads, num_heads_k, headdim, headdim_v, dtype, used, *rest):
        assert used.shape == (batch_size,) and headdim == headdim_v and rest[6:10] == (0, False, -1, -1)
        return torch.tensor([batch_size, max_seqlen_q, max_seqlen_k, num_heads, num_heads_k, headdim])

    def fwd(*values):
        given = dict(zip(names, values, strict=True))
        q, k = given["q"], given["k"]
        assert given["scheduler_metadata"].tolist() == [k.shape[0], 1, k.shape[1], q.shape[2], *k.shape[2:]]
        assert (given["cp_world_size"], given["num_splits"], given["window_size_left"]) == (1, 0, -1)
        return [batched(q, k, given["v"], given["seqused_k"], given["softmax_scale"]), q.new_zeros(1)]

    library.impl("get_scheduler_metadata", plan, "CPU")
    library.impl("fwd", fwd, "CPU")
    return library


def flashinfer() -> SimpleNamespace:
    """FlashInfer: `seen` collects what was asked for."""
    seen: list[tuple[str, bool]] = []

    def single_decode_with_kv_cache(q, k, v, kv_layout="NHD", pos_encoding_mode="NONE", use_tensor_cores=False):
        assert kv_layout == "NHD" and q.dim() == 2 and k.dim() == 3
        seen.append(("single", use_tensor_cores))
        return attention(q, k, v)

    class BatchDecodeWithPagedKVCacheWrapper:
        def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False):
            assert kv_layout == "NHD" and float_workspace_buffer.dtype == torch.uint8
            assert not float_workspace_buffer.any()
            self.tensor_cores = use_tensor_cores

        def plan(
            self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, *,
            q_data_type, kv_data_type,
        ):  # fmt: skip
            assert {t.dtype for t in (indptr, indices, last_page_len)} == {torch.int32}
            self.table = indptr, indices, last_page_len
            self.query, self.page = (num_qo_heads, head_dim), (page_size, num_kv_heads, head_dim)
            self.dtypes = q_data_type, kv_data_type

        def run(self, q, paged_kv_cache):
            seen.append(("batch", self.tensor_cores))
            indptr, indices, last = self.table
            k, v = paged_kv_cache
            assert q.shape[1:] == self.query and k.shape[1:] == v.shape[1:] == self.page
            assert self.dtypes == (q.dtype, k.dtype)
            rows = []
            for b in range(len(last)):
                pages = indices[indptr[b] : indptr[b + 1]].long()
                kv_len = (len(pages) - 1) * self.page[0] + int(last[b])
                rows.append(attention(q[b], *(t[pages].flatten(0, 1)[:kv_len] for t in (k, v))))
            return torch.stack(rows)

    def xqa(
        q, k_cache, v_cache, page_table, seq_lens, output, workspace_buffer, semaphores, num_kv_heads, page_size,
        kv_layout="NHD",
    ):  # fmt: skip
        batch, beams, _, head_dim = q.shape
        assert beams == 1 and output.shape == q.shape and output.dtype == q.dtype and kv_layout == "NHD"
        assert k_cache.shape[1:] == v_cache.shape[1:] == (page_size, num_kv_heads, head_dim)
        assert page_size in (16, 32, 64, 128) and workspace_buffer.dtype == torch.uint8
        assert (page_table.dtype, seq_lens.dtype, semaphores.dtype) == (torch.int32, torch.uint32, torch.uint32)
        assert page_table.shape[0] == batch and seq_lens.shape == (batch, 1)
        assert not semaphores.view(torch.int32).any()
        seen.append(("xqa", True))
        for b, kv_len in enumerate(seq_lens.view(torch.int32)[:, 0].tolist()):
            assert page_table.shape[1] == -(-kv_len // page_size)  # the longest that the kernel plans for
            pages = page_table[b].long()
            output[b, 0] = attention(q[b, 0], *(t[pages].flatten(0, 1)[:kv_len] for t in (k_cache, v_cache)))

    return SimpleNamespace(
        seen=seen,
        xqa=xqa,
        single_decode_with_kv_cache=single_decode_with_kv_cache,
        BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper,
    )
