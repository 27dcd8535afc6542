"""The paper's figures: whole, placed, and disagreeing with each other exactly where docs/paper.md says they do."""

import re

import pytest
import torch
from inputs.command_line import ROOT

import pykernels as pk
from bench.study import accounting, paper

v = paper.value
PAGE = (ROOT / "docs" / "paper.md").read_text()
QWEN = pk.models.get("qwen2.5-7b")


def row(number: int) -> str:
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {number} |")]
    return line


def says(number: int, *texts: str) -> None:
    for text in texts:
        assert text in row(number), f"{text!r} is not in row {number}: {row(number)}"


def disagree(a: float, b: float, places: int) -> bool:
    """Two figures are not the same number rounded to so many places."""
    return abs(a - b) > 0.5 * 10**-places + 1e-12


def floor_qwen(gpu: str, ctx: int = 2048) -> float:
    # The cache of the measured steps: kv_bytes_avg, as the text gives it for ctx 2048.
    assert ctx == 2048
    return accounting.floor_ms(v("weights_qwen") * 1e9, v("kv_step_qwen") * 1e6, v(f"peak_{gpu}"))


def test_every_figure_has_a_place():
    assert len(paper.figures()) > 70
    for figure in paper.figures().values():
        assert figure.place and figure.value > 0
        assert (figure.low is None) == (figure.high is None)
        if figure.low is not None:
            assert figure.low <= figure.value <= figure.high
        assert figure.model is None or figure.model in pk.models.names()


def test_the_rows_are_numbered():
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)] == list(range(1, 25))


@pytest.mark.parametrize("model", ["qwen", "mistral", "llama"])
def test_the_weights_agree_with_the_models(model):
    spec = next(pk.models.get(name) for name in pk.models.names() if name.startswith(model))
    assert not disagree(spec.weight_bytes() / 1e9, v(f"weights_{model}"), 2)


def test_the_cache_agrees_with_the_model():
    assert QWEN.kv_bytes(1) == v("kv_token_qwen") * 1024
    kv_lens = range(2048 + 6, 2048 + 36)  # 5 warm-up steps, 30 measured
    assert QWEN.kv_bytes(1) * sum(kv_lens) / 30 / 1e6 == pytest.approx(v("kv_step_qwen"), abs=1)


def test_1_the_l4_baseline():
    assert disagree(v("l4_bf16"), v("l4_eager"), 2) and disagree(v("l4_bf16"), v("l4_unprofiled"), 1)
    assert v("l4_graph") > v("l4_bf16")
    says(1, f"{100 * (v('l4_eager') / v('l4_bf16') - 1):.1f}%", f"{100 * (v('graph_speedup_l4') - 1):.1f}%")


def test_2_the_l4_share():
    low, high = v("floor_l4") / v("l4_eager"), v("floor_l4") / v("l4_bf16")
    assert disagree(low, v("ratio_l4"), 2) and disagree(v("ratio_l4"), v("ratio_l4_figure1"), 2)
    assert disagree(v("ratio_l4"), v("ratio_l4_section7"), 2)
    says(2, f"{low:.3f}", f"{high:.3f}", f"{v('floor_l4') / v('ratio_l4'):.2f} ms")
    assert floor_qwen("l4") == pytest.approx(v("floor_l4"), abs=0.02)


def test_3_who_ran_out_of_memory():
    says(3, f"{v('ratio_l4_mistral_ctx8192')}")


def test_4_the_cells():
    assert 3 * v("cells_per_model") == 42 != v("cells_valid") == 14 + 16 + 14
    says(4, "42", "44")


def test_5_the_headline_ratio():
    floor = floor_qwen("h100")
    assert disagree(floor / v("h100_eager"), v("ratio_h100"), 2)
    assert not disagree(floor / v("h100_unprofiled"), v("ratio_h100"), 2)
    assert not disagree(floor / v("h100_eager_oft"), v("ratio_h100_oft"), 3)
    says(5, f"{floor:.2f} ms", f"{floor / v('h100_eager'):.3f}")


def test_6_the_floor_under_figure_2():
    floor = accounting.floor_ms(v("blocks_qwen") * 1e9, 0, v("peak_h100"))
    assert not disagree(floor, v("floor_h100_figure2"), 2) and disagree(v("blocks_qwen"), v("weights_qwen"), 2)
    says(6, f"{floor:.2f} ms", f"{floor / v('h100_eager'):.3f}")
    blocks = QWEN.n_layers * (QWEN.layer_weight_elements * 2 + QWEN.layer_kv_bytes(2048))
    assert not disagree(blocks / 1e9, v("blocks_qwen"), 1), "tables are what is left out"


def test_7_floor_over_observed():
    ratios = [f.value for f in paper.figures().values() if f.quantity in ("R_floor", "R_floor_median")]
    assert max(ratios) < 1
    assert accounting.floor_ratio(v("floor_l4"), v("l4_eager")) < 1


def test_8_what_graphs_take_off():
    share = v("graph_removed") / v("h100_eager")
    assert not disagree(share, v("graph_removed_share"), 3)
    assert disagree(share, v("graph_removed_share_figure3"), 2)
    says(8, f"{share:.3f}", f"{v('h100_eager') / v('h100_graph'):.3f}")


def test_9_the_speedup_on_l4():
    ratio = v("l4_eager") / v("l4_graph")
    assert disagree(ratio, v("graph_speedup_l4"), 3)
    says(9, f"{ratio:.3f}")


def test_10_the_cost():
    h100 = accounting.usd_per_million_tokens(v("price_h100"), v("h100_graph"))
    l4 = accounting.usd_per_million_tokens(v("price_l4"), v("l4_exl2"))
    assert disagree(h100 / l4, v("cost_ratio"), 0)
    says(10, f"{h100:.2f} USD", f"{l4:.2f}", f"{h100 / l4:.1f}x", f"{v('price_h100') / v('price_l4'):.1f}")


def test_11_the_range_of_eager_steps():
    assert not v("h100_unprofiled") <= v("h100_eager") <= v("h100_eager_v11")
    assert not v("h100_unprofiled") <= v("h100_eager_oft_replicate") <= v("h100_eager_v11")
    says(11, f"{v('h100_eager')}", f"{v('h100_eager_oft_replicate')}")


def test_12_the_unprofiled_step():
    utilisation = accounting.bandwidth_utilisation(
        v("weights_qwen") * 1e9, v("kv_step_qwen") * 1e6, v("h100_eager"), v("peak_h100")
    )
    assert disagree(utilisation, v("bw_util_h100"), 2)
    says(12, f"{100 * utilisation:.1f}%", f"{100 * v('bw_util_h100'):.1f}%")


def test_13_the_utilisation_on_l4():
    assert not disagree(v("floor_l4") / v("l4_eager"), v("bw_util_l4"), 3)
    says(13, f"{100 * v('floor_l4') / v('l4_unprofiled'):.1f}%")


def test_14_kernels_below_the_floor():
    kernels_ms = v("compute_us_figure3") * v("launches_per_block") * QWEN.n_layers / 1000
    assert kernels_ms < v("floor_h100_figure2")
    says(14, f"{kernels_ms:.1f} ms", f"{v('floor_h100_figure2')} ms")


def test_15_launches_beyond_what_graphs_remove():
    launches_ms = v("launch_us_figure3") * v("launches_per_block") * QWEN.n_layers / 1000
    assert launches_ms > 2 * v("graph_removed")
    says(15, f"{launches_ms:.1f} ms")


def test_16_launches():
    assert QWEN.n_layers * v("launches_per_block") + 3 == v("launches_per_step_qwen")
    says(16, f"{QWEN.n_layers * v('launches_listed') + 3:.0f}")


def test_17_the_memory_of_l4():
    assert v("l4_memory_batch4") < v("l4_peak_ctx8192") < v("l4_memory")
    says(17, f"{v('l4_peak_ctx8192')} GB")


def test_18_qwens_weights():
    assert disagree(v("weights_qwen_batch4"), v("weights_qwen"), 1) and v("weights_qwen_batch4") == v("weights_mistral")
    says(18, f"{QWEN.weight_bytes() / 1e9:.2f} GB")


def test_19_what_the_failed_cells_ask_for():
    cache = QWEN.kv_bytes(8192) / 1e9
    says(19, f"{cache:.2f} GB", f"{v('weights_qwen') + cache:.2f} GB")
    assert v("weights_qwen") + cache < v("l4_memory_batch4")


def test_20_the_spread():
    says(20, f"{100 * v('graph_speedup_h100_sd') / v('graph_speedup_h100'):.1f}%")


def test_23_the_bits_of_exl2():
    def floor(bits: float) -> float:
        return accounting.floor_ms(v("weights_qwen") * 1e9 * bits / 16, v("kv_step_qwen") * 1e6, v("peak_l4"))

    assert not disagree(floor(4), v("floor_l4_int4"), 1)
    assert not disagree(v("floor_l4_int4") / v("l4_exl2"), v("ratio_l4_exl2"), 3)
    says(23, f"{floor(4.25):.2f} ms", f"{floor(4.25) / v('l4_exl2'):.3f}")


def test_what_the_page_adds():
    table = QWEN.vocab * QWEN.hidden * torch.bfloat16.itemsize
    share = table / (QWEN.weight_bytes() + QWEN.kv_bytes(2048))
    assert f"{table / 1e9:.2f} GB, {100 * share:.0f}%" in " ".join(PAGE.split())


def test_what_does_agree():
    assert v("h100_eager") - v("h100_graph") == pytest.approx(v("graph_removed"))
    assert not disagree(v("h100_eager") / v("h100_graph"), v("graph_speedup_h100"), 3)
    assert not disagree(v("floor_l4_int4") / v("l4_awq"), v("ratio_l4_awq"), 3)
    assert not disagree(accounting.profiler_inflation(v("h100_profiled"), v("h100_unprofiled")), v("inflation_h100"), 1)
    assert not disagree(accounting.profiler_inflation(v("l4_profiled"), v("l4_unprofiled")), v("inflation_l4"), 2)
    assert not disagree(4 * v("h100_graph") / v("h100_graph_batch4"), 3.20, 1)


def test_ratios_of_host_and_device():
    assert accounting.cpu_cuda_ratio(750.0, 1000.0) == v("cpu_cuda_h100")
