"""gqa_decode with a unified maximum on the CPU, its reference, its layer, and phi calibrated."""

import math
from functools import partial

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, isa, threads
from inputs.unified import PLANTS, check_unified, expected_fallbacks, planted

import pykernels as pk


def run(given, phi=0.0, workspace=None):
    """(out, online's out, fall-backs)"""
    if workspace is None:
        workspace = pk.ops.gqa_decode_workspace(given[0], given[1], "unified")
    before = pk.ops.gqa_decode_fallbacks(workspace)
    out = pk.ops.gqa_decode(*given, softmax="unified", phi=phi, workspace=workspace)
    return out, pk.ops.gqa_decode(*given), pk.ops.gqa_decode_fallbacks(workspace) - before


@pairwise
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("group", [1, 4, 7, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_scores(dtype, group, count, plant, isa_name):
    given = planted([300, 70], 300, 2 * group, 2, 64, dtype, {(0, 1): plant})
    with threads(count), isa(isa_name):
        check_unified(*run(given), given)


def test_what_fits_does_not_fall_back():
    given = planted([300, 1], 300, 8, 2, 64, torch.bfloat16)
    out, online, fallbacks = run(given)
    assert fallbacks == 0
    check_unified(out, online, fallbacks, given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("phi", [-1e6, -90.0, -9.0, 0.0, 9.0, 90.0, 1e6])
def test_any_phi_is_right(phi, dtype):
    given = planted([130], 130, 4, 1, 64, dtype, {(0, 0): "one_huge"})
    check_unified(*run(given, phi), given, phi)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_range_ends_where_the_reference_says(dtype):
    """All scores equal, next to either end: of one key, so that their mean is what they are."""
    highest, lowest_mean = pk.reference.UNIFIED_LIMITS[dtype]
    lowest = math.log2(lowest_mean)
    for exponent, falls_back in ((highest - 0.25, 0), (highest + 0.25, 4), (lowest + 0.25, 0), (lowest - 0.25, 4)):
        given = planted([1], 20, 4, 1, 64, dtype, {(0, 0): "all_equal"})
        given[0].zero_()
        out, online, fallbacks = run(given, -exponent * math.log(2))
        assert fallbacks == falls_back, exponent
        check_unified(out, online, fallbacks, given, -exponent * math.log(2))


def test_the_check_finds_faults():
    """A fall-back that is not taken, one that is not counted, and a partial sum that is lost."""
    given = planted([200, 70], 200, 8, 2, 64, torch.bfloat16, {(0, 0): "overflows"})
    out, online, fallbacks = run(given)
    check_unified(out, online, fallbacks, given)
    not_taken = out.clone()
    not_taken[0, 0] += 2**-6
    lost = out.clone()
    q, k, v, kv_len = given
    lost[0, 5] = pk.reference.gqa_decode(q, k, v, kv_len - 64)[0, 5].to(lost.dtype)
    for wrong in ((not_taken, online, fallbacks), (out, online, fallbacks - 1), (lost, online, fallbacks)):
        with pytest.raises(AssertionError):
            check_unified(*wrong, given)


def test_the_count_goes_on_and_starts_again():
    given = planted([100], 100, 4, 1, 64, torch.float16, {(0, 0): "overflows"})
    workspace = pk.ops.gqa_decode_workspace(given[0], given[1], "unified")
    assert [run(given, workspace=workspace)[2] for _ in range(2)] == [2, 2]
    assert pk.ops.gqa_decode_fallbacks(workspace) == 4
    pk.ops.reset_gqa_decode_fallbacks(workspace)
    assert pk.ops.gqa_decode_fallbacks(workspace) == 0


def test_softcap_comes_before_phi():
    given = planted([100], 100, 4, 1, 64, torch.float32, {(0, 0): "overflows"})
    capped = pk.ops.gqa_decode(*given, softcap=20.0, softmax="unified", phi=10.0)
    expected = pk.reference.gqa_decode(*given, softcap=20.0)
    assert pk.reference.compare(capped, expected, torch.float32).ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(softmax="lazy"), "softmax must be online or unified, got lazy"),
        (dict(softmax="unified", phi=2e6), r"phi must be in \[-1e6, 1e6\], got 2000000"),
        (dict(softmax="unified", phi=float("nan")), r"phi must be in \[-1e6, 1e6\], got nan"),
        (dict(phi=1.0), "phi must be 0 where softmax is online, got 1.0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"gqa_decode: {message}"):
        pk.ops.gqa_decode(*planted([20], 20, 4, 1, 64, torch.float32), **changes)


def test_a_workspace_of_online_is_too_small():
    given = planted([100], 100, 4, 1, 64, torch.float32)
    online = pk.ops.gqa_decode_workspace(given[0], given[1])
    with pytest.raises(ValueError, match=f"workspace must be of at least {len(online) + 64} bytes, got {len(online)}"):
        pk.ops.gqa_decode(*given, softmax="unified", workspace=online)


@pytest.mark.parametrize("fusion", ["none", "block"])
def test_a_layer_in_every_form(fusion):
    """Calls, a program, a dispatcher's tape: the same bits; and the count of fall-backs."""
    spec = pk.models.get("tiny")
    weights = pk.LayerWeights.random(spec, torch.float32)
    online = pk.DecodeLayer(spec, weights, 70, dtype=torch.float32)
    expected = online.forward(fusion).clone()
    found = pk.calibrate_phi([online.score_rows()], torch.float32)
    for phi, falls_back in ((found.phi, 0), (1e3, spec.n_heads)):
        layer = online.with_softmax("unified", phi)
        program, tape = layer.program(fusion), layer.tape(fusion)
        for step in (partial(layer.forward, fusion), program.run, tape.run):
            layer.reset_fallbacks()
            layer.poison()
            step()
            assert layer.fallbacks == falls_back
            if falls_back:
                assert torch.equal(layer.out, expected)
            assert pk.reference.compare(layer.out, expected.double(), torch.float32, 2).ok
    made = pk.DecodeLayer(spec, weights, 70, dtype=torch.float32, softmax="unified", phi=found.phi)
    assert (made.softmax, made.phi, online.fallbacks) == ("unified", found.phi, 0)


def test_a_model_counts_over_its_layers():
    spec = pk.models.get("tiny")
    model = pk.DecodeModel(spec, pk.ModelWeights.random(spec, torch.float32), 40, dtype=torch.float32)
    model.set_position(30)
    rows = model.score_rows()
    assert len(rows) == spec.n_layers
    other = model.with_softmax("unified", 1e3)
    other.forward("block")
    assert other.layers[0].fallbacks == spec.n_layers * spec.n_heads


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_calibrated_phi_keeps_most_in_range(dtype):
    """Two sequences' scores lie about 70, one's about -70: of those the dtype has room for, the more are kept."""
    q, k, v, kv_len = planted([200, 150, 90], 200, 4, 1, 64, dtype)
    q[..., 0], shifts = 8.0, torch.tensor([70.0, 70.0, -70.0])
    k[..., 0] = shifts.view(3, 1, 1)
    found = pk.calibrate_phi([pk.score_rows(q, k, kv_len)], dtype)
    fell_back = expected_fallbacks((q, k, v, kv_len), found.phi)
    assert not fell_back[:2].any()
    assert found.rows == 12
    assert found.in_range == float((~fell_back).sum()) / 12
    assert found.low < -100 < found.high or dtype != torch.float16
    assert run((q, k, v, kv_len), found.phi)[2] == int(fell_back.sum())


def test_nothing_to_calibrate_from():
    q, k, _, kv_len = planted([20], 20, 4, 1, 64, torch.float32, {(0, 0): "one_nan"})
    with pytest.raises(ValueError, match="rows must hold finite scores of one"):
        pk.calibrate_phi([pk.score_rows(q, k, kv_len)], torch.float32)
    with pytest.raises(ValueError, match="got 0 rows"):
        pk.calibrate_phi([], torch.float32)


def test_the_reference_is_the_softmax_in_range():
    q, k, v, kv_len = planted([50], 50, 4, 2, 64, torch.float32, {(0, 1): "overflows"})
    online = pk.reference.gqa_decode(q, k, v, kv_len)
    unified = pk.reference.gqa_decode(q, k, v, kv_len, softmax="unified", phi=1.0)
    assert torch.allclose(online, unified, rtol=1e-12, atol=1e-12)
    assert not torch.equal(online[0, 0], unified[0, 0])
    assert torch.equal(online[0, 2], unified[0, 2])
