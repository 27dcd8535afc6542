"""An installed launchtax: a wheel in an environment of its own, beside other packages called `bench` and `tests`."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from bench.core.extras import extras
from bench.drivers import DRIVERS

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTILE = "raise ImportError('the wrong package')\n"


def run(*words: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout. What is compiled already is not compiled again."""
    if not (ROOT / "build" / sysconfig.get_config_var("SOABI")).is_dir() or not shutil.which("cmake"):
        pytest.skip("needs the folder of a build, and cmake: a wheel takes minutes without")
    folder = tmp_path_factory.mktemp("wheel")
    done = run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}",
        ROOT, folder=folder, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        CMAKE_ARGS="-DPYKERNELS_IN_PLACE=ON",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment with the wheel, which finds this one's libraries behind its own."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    python = folder / "bin" / "python"
    done = run(
        sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", wheel, folder=folder
    )
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "lib").glob("*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def hostile(tmp_path):
    """A folder to work in with a `bench` and a `tests` that must not be imported."""
    for name in ("bench", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(HOSTILE)
    return tmp_path


def test_the_wheel_takes_two_names(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"pykernels", "launchtax"}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bench").rglob("*.py")}
    here |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "bench" / "study").glob("*.toml")}
    assert {name.removeprefix("launchtax/") for name in names if name.startswith("launchtax/bench/")} >= here
    assert sum(name.endswith(".so") for name in names) == 3


@pytest.mark.parametrize("words", [[], ["layer", "--list"]], ids=["none", "layer"])
def test_the_command_lists(installed, hostile, words):
    done = run(installed / "launchtax", *words, folder=hostile, PYTHONPATH=str(hostile))
    assert done.returncode == 0, done.stderr
    names = [f"launchtax {name} " for name in DRIVERS] if not words else ["native", "sdpa", "qwen2.5-7b"]
    assert all(name in done.stdout for name in names)


def test_a_driver_and_a_plug_in_beside_another_bench(installed, hostile):
    """With -m the other bench is in the first folder of sys.path too, and not on PYTHONPATH alone."""
    shutil.copy(ROOT / "examples" / "attention_plugin.py", hostile / "mine.py")
    done = run(
        installed / "python", "-m", "launchtax", "op", "--op=gqa_decode", "--model=tiny", "--ctx=64", "--device=cpu",
        "--backend=native,mine.py:Attention", "--steps=2", "--json=op.json",
        folder=hostile, PYTHONPATH=str(hostile),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((hostile / "op.json").read_text())
    assert {(row["backend"], row["status"]) for row in document["ops"]} >= {
        ("native", "ok"),
        ("mine.py:Attention", "ok"),
    }
    assert document["command"].startswith("launchtax op --op=gqa_decode")


def test_bad_names_and_flags_are_refused_in_one_line(installed, hostile):
    for words in (["nonsense"], ["layer", "--batch=0"]):
        done = run(installed / "launchtax", *words, folder=hostile)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_checkouts_command_is_that_of_python_m(hostile):
    done = run(sys.executable, "-m", "launchtax", folder=ROOT)
    assert done.returncode == 0 and "launchtax layer" in done.stdout


def test_extras_name_what_is_missing(monkeypatch):
    listed = {extra.name: extra for extra in extras()}
    assert set(listed) == {"flashinfer", "flash-attn", "flash-attn-4", "int4", "plugins", "ray"}
    assert [need.split(">")[0] for need in listed["int4"].needs] == ["torchao", "bitsandbytes", "gemlite", "exllamav2"]
    for extra in listed.values():
        assert set(extra.missing) <= set(extra.needs) and extra.install.startswith("pip install ")
    assert "--no-build-isolation" in listed["flash-attn"].install


def test_an_old_release_is_missing_too(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1")
    assert all(extra.missing == extra.needs for extra in extras())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert not any(extra.missing for extra in extras())
