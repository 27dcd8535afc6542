"""Result documents on disk: whole or not at all, JSON that any parser reads, one CSV row an arm and an op."""

import csv
import gzip
import io
import json
import math
import os

import numpy as np
import pytest
from inputs.documents import whole
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from bench.core import document, files
from bench.core.errors import UsageError

CLOCK = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "n": 5}
ARM = {"backend": "native", "mode": "eager", "fusion": "block", "status": "ok", "reason": None, "wall_us": CLOCK,
       "host_us": {**CLOCK, "p50": 1.5}, "device_us": None, "samples_us": [1.0, 2.0, 3.0], "bytes": 640, "gbs": 0.32,
       "share_of_spec": None, "share_of_read": None, "max_rel_error": None, "launches": 5}  # fmt: skip
REFUSED = {**ARM, "backend": "fa2", "status": "unsupported", "reason": 'needs "a, b"\nand c', "wall_us": None,
           "host_us": None}  # fmt: skip
OP = {"backend": "native", "fusion": "none", "op": "gemv", "label": "o_proj", "shape": "1x64 -> 64", "bytes": 8192,
      "time_us": CLOCK}  # fmt: skip
RESULT = whole({"kind": "layer", "model": {"name": "tiny"}, "ctx": 64, "batch": 1, "dtype": "bf16",
                "device": "cpu", "l2": "cold", "arms": [ARM, REFUSED], "ops": [OP]})  # fmt: skip
WRITERS = [document.write_json, document.write_csv]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "fchmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(monkeypatch, tmp_path, write, step, error):
    path = tmp_path / "result"
    path.write_text("the last run's")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write(path, RESULT)
    assert path.read_text() == "the last run's"
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_document_that_cannot_be_written_out_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "result"
    path.write_text("the last run's")
    with pytest.raises((TypeError, AttributeError)):
        write(path, RESULT | {"arms": [object()]})
    assert path.read_text() == "the last run's"
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_picture_that_fails_leaves_what_was_there(monkeypatch, tmp_path, step):
    path = tmp_path / "ladder.png"
    path.write_text("the last run's")

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(os, step, fail)
        document.write_figure(path, Figure())
    assert path.read_text() == "the last run's" and os.listdir(tmp_path) == ["ladder.png"]
    document.write_figure(path, Figure())
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "result"
    path.write_text("x" * 10_000)
    document.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result"]
    assert path.stat().st_mode & 0o444 == 0o444, "others must be able to read a result"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_json_has_no_word_for_becomes_null(tmp_path, value):
    path = tmp_path / "result.json"
    document.write_json(path, RESULT | {"deep": {"list": [1.5, value], "tuple": (value, "nan")}, "flat": value})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    loaded = json.loads(path.read_text(), parse_constant=refuse)
    assert loaded["deep"] == {"list": [1.5, None], "tuple": [None, "nan"]}
    assert loaded["flat"] is None


def test_a_document_comes_back_as_it_was(tmp_path):
    path = tmp_path / "result.json"
    document.write_json(path, RESULT)
    assert document.load(path) == RESULT
    assert path.read_text().endswith("}\n")


def test_a_compressed_document_is_the_same_document(tmp_path):
    plain, packed = tmp_path / "result.json", tmp_path / "packed.json.gz"
    for path in (plain, packed):
        document.write_json(path, RESULT)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() and document.load(packed) == RESULT
    first = packed.read_bytes()
    document.write_json(packed, RESULT)
    assert packed.read_bytes() == first, "the same bytes, whenever it was written"
    assert set(document.files(tmp_path)) == {plain, packed}
    assert [document.stem(path) for path in (plain, packed)] == ["result", "packed"]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: content[:5] + b"x" * 40, lambda _: b"{}"]
)
def test_a_compressed_file_that_is_no_document(tmp_path, damage):
    path = tmp_path / "result.json.gz"
    document.write_json(path, RESULT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="cannot be read as a result document") as caught:
        document.load(path)
    assert "\n" not in str(caught.value)


def test_a_picture_keeps_its_colours(tmp_path):
    """128 of them: a third of the size of a PNG of all, and thin lines keep theirs."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
    for place, colour in enumerate(colours):
        axes.plot([0, 1], [place, place], color=colour, linewidth=2)
    image = Image.open(io.BytesIO(document.picture(figure, "png")))
    assert image.mode == "P" and len(image.getcolors()) <= 128
    found = {colour for _, colour in image.convert("RGB").getcolors()}
    for colour in colours:
        wanted = [round(255 * part) for part in to_rgb(colour)]
        assert min(max(abs(a - b) for a, b in zip(wanted, one, strict=True)) for one in found) <= 8, colour


def test_a_list_of_numbers_is_one_line(tmp_path):
    path = tmp_path / "result.json"
    document.write_json(path, {"schema": document.SCHEMA, "empty": [[], {}], "arms": [ARM], "pairs": [[1, 2], [3, 4]]})
    lines = path.read_text().splitlines()
    assert '   "wall_us": {"p20": 1.0, "p50": 2.0, "p80": 3.0, "n": 5},' in lines
    assert '   "samples_us": [1.0, 2.0, 3.0],' in lines and ' "empty": [[], {}],' in lines
    assert lines[-5:] == [' "pairs": [', "  [1, 2],", "  [3, 4]", " ]", "}"]


def test_every_bit_of_a_number_comes_back(tmp_path):
    path = tmp_path / "result.json"
    numbers = np.random.default_rng(0).normal(100, 10, 1000).tolist()
    document.write_json(path, RESULT | {"samples_us": numbers})
    assert document.load(path)["samples_us"] == numbers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "cannot be read"),
        (b'{"schema": "launchtax/1",', "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        pytest.param(b"[" * 200_000, "cannot be read", id="nested"),
        pytest.param(b'{"ctx": ' + b"9" * 5000 + b"}", "cannot be read", id="a number past Python's limit"),
        (b"[]", "schema must be launchtax/1, got None"),
        (b"{}", "schema must be launchtax/1, got None"),
        (b'{"schema": "launchtax/1"}', "kind: must be one of layer, "),
        (b'{"schema": "launchtax/1", "kind": ["layer"]}', "got ['layer']"),
        (b'{"schema": "launch\\ntax/2"}', "schema must be launchtax/1, got 'launch\\ntax/2'"),
    ],
)
def test_a_file_that_is_no_document(tmp_path, content, words):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        document.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message
    assert "\n" not in message


def test_a_folder_is_no_document(tmp_path):
    with pytest.raises(UsageError, match="must be a regular file, and that is a folder"):
        document.load(tmp_path)


def test_checking_leaves_nothing_behind(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("the last run's")
    before = old.stat()
    for path in (old, tmp_path / "new.json"):
        document.check_writable(path, "--json")
    assert os.listdir(tmp_path) == ["old.json"]
    assert old.read_text() == "the last run's"
    assert old.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("folder", "must be a regular file, and that is a folder"),
        ("missing/x.json", "must be in a folder that exists, and {folder}/missing does not"),
        ("file/x.json", "must be in a folder that exists, and {folder}/file does not"),
    ],
)
def test_a_path_that_cannot_be_written(tmp_path, name, allowed):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    with pytest.raises(UsageError) as caught:
        document.check_writable(path, "--json")
    assert str(caught.value) == f"--json={path}: {allowed.format(folder=tmp_path)}"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_disk_that_refuses(monkeypatch, tmp_path):
    def fail(_folder):
        raise PermissionError(13, "Permission denied")

    # Root writes everywhere, so the refusal is simulated.
    monkeypatch.setattr(files, "temporary", fail)
    with pytest.raises(UsageError, match=r"--csv=.*x\.csv: must be writable: Permission denied$"):
        document.check_writable(tmp_path / "x.csv", "--csv")


def test_the_csv(tmp_path):
    path = tmp_path / "result.csv"
    document.write_csv(path, RESULT)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        arm, refused, op = reader
    assert reader.fieldnames == [
        "kind", "model", "ctx", "batch", "dtype", "device", "l2", "backend", "mode", "fusion", "op", "label", "shape",
        "status", "reason", "bytes", "p20_us", "p50_us", "p80_us", "n", "host_p50_us", "gbs", "share_of_spec",
        "share_of_read", "max_rel_error",
    ]  # fmt: skip
    for row in (arm, refused, op):
        assert [row[key] for key in ("model", "ctx", "batch", "dtype", "device", "l2")] == [
            "tiny", "64", "1", "bf16", "cpu", "cold",
        ]  # fmt: skip
    assert [arm[key] for key in ("kind", "backend", "mode", "fusion", "status")] == [
        "arm", "native", "eager", "block", "ok",
    ]  # fmt: skip
    assert [arm[key] for key in ("p20_us", "p50_us", "p80_us", "n", "host_p50_us", "gbs")] == [
        "1.0", "2.0", "3.0", "5", "1.5", "0.32",
    ]  # fmt: skip
    assert refused["reason"] == REFUSED["reason"]
    assert {refused[key] for key in ("p20_us", "p50_us", "p80_us", "n", "host_p50_us")} == {""}
    assert [op[key] for key in ("kind", "op", "label", "shape", "bytes", "p50_us", "mode")] == [
        "op", "gemv", "o_proj", "1x64 -> 64", "8192", "2.0", "",
    ]  # fmt: skip


def test_the_csv_of_a_run_without_a_model(tmp_path):
    path = tmp_path / "result.csv"
    document.write_csv(path, {"schema": document.SCHEMA, "arms": [], "ops": [{**OP, "status": "wrong"}]})
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["op"], row["status"]) == ("", "gemv", "wrong")
