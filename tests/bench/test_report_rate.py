"""bench.report of documents of bench.rate: tables, pictures, and what the energy of a million tokens is."""

import json

import pytest
from inputs.command_line import run_here
from inputs.rate_documents import cell, rate_document

from bench.study import cost


def test_steps_at_a_rate_have_tables_pictures_and_energy(capsys, tmp_path):
    cells = [cell(1, 0, 3000), cell(2, 10, 4000, n=300), cell(3, 30, 4000, load="cpu:4")]
    (tmp_path / "h200-rate.json").write_text(json.dumps(rate_document(cells)))
    result = run_here(capsys, "bench.report", str(tmp_path), "--no-svg", "--price=kWh=0.25")
    assert result.status == 0, result.err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Steps at a rate" in text and "beside cpu:4" in text
    assert "needs 368" in text, "300 steps are too few for p99"
    assert "energy check, 2.0 s of steps back to back: counter 400.0 J, power x time 396.0 J, ratio 1.010" in text
    assert "SM 1980 to 1980 MHz; memory 3201 to 3201 MHz; 40 to 40 C; P0" in text
    # 3.6 J a token is 1 kWh a million tokens.
    assert "| NVIDIA H200 | tiny | 64 | 1 | native/block:graph | back to back | 3.6 | 1 | 0.25 |" in text
    assert sorted(path.name for path in (tmp_path / "report" / "figures").glob("h200-rate*")) == [
        "h200-rate-cpu-4.png", "h200-rate-none.png",
    ]  # fmt: skip


def test_energy_of_a_million_tokens():
    assert cost.energy_of_tokens(3.6, None) == (1.0, None)
    price = cost.kwh_price(cost.prices(["kWh=0.5"]))
    assert cost.energy_of_tokens(7.2, price) == pytest.approx((2.0, 1.0))
    assert cost.kwh_price(cost.prices()) is None
