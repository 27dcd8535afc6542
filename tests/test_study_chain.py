"""The study on the tiny model, as a stranger runs it: sweep, ab, compare, report."""

import json

from command_line import run_here


def test_sweep_ab_compare_report(capsys, tmp_path):
    small = ["--model=tiny", "--steps=4", "--warmup=1"]
    for name in ("before", "after"):
        flags = [
            "--ctx=16,32",
            "--batch=1,2",
            "--arm=native/block:eager,native/block:native",
            f"--out={tmp_path / name}",
        ]
        assert run_here(capsys, "bench.sweep", *small, *flags).status == 0
    cell = "tiny_ctx32_b2.json"
    flags = ["--threshold=9", f"--json={tmp_path / 'after' / 'compare.json'}"]
    compared = run_here(
        capsys, "bench.compare", str(tmp_path / "before" / cell), str(tmp_path / "after" / cell), *flags
    )
    assert compared.status == 0, compared.err
    keys = [row["key"] for row in json.loads((tmp_path / "after" / "compare.json").read_text())["comparisons"]]
    assert keys == ["native block eager", "native block native"]
    arms = [
        "--a=native:eager",
        "--b=native:native",
        "--ctx=16",
        "--sessions=2",
        f"--json={tmp_path / 'after' / 'ab.json'}",
    ]
    assert run_here(capsys, "bench.ab", *small, *arms).status == 0
    result = run_here(capsys, "bench.report", str(tmp_path / "after"), f"--out={tmp_path / 'report'}")
    assert result.status == 0 and result.out.startswith("6 documents"), result.err
    page = (tmp_path / "report" / "report.html").read_text()
    for words in ("Whole steps and the memory floor", "native/block:native", "undecided", "Comparisons", "published"):
        assert words in page
