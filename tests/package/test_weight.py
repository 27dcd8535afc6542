"""What a clone weighs: what a command can make is not stored, large documents are compressed, a picture exists once."""

import hashlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000


def tracked() -> list[Path]:
    """The files of a commit made now; skips where this is no clone (an unpacked archive)."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: nothing says which files are stored")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file() and not path.is_symlink()]


def test_a_clone_is_under_12_megabytes():
    sizes = sorted(((path.stat().st_size, path.relative_to(ROOT)) for path in tracked()), reverse=True)
    total = sum(size for size, _ in sizes)
    assert total < 12 * MEGABYTE, f"{total:,} bytes; the largest: {sizes[:5]}"


def test_large_documents_are_compressed():
    """bench.*'s --json=FILE.json.gz writes them so."""
    large = [path for path in (ROOT / "bench" / "results").rglob("*.json") if path.stat().st_size > 250_000]
    assert not large


def test_a_document_is_stored_once():
    """Compressed or plain: beside a new one of the other kind an old one would be read."""
    results = ROOT / "bench" / "results"
    assert not [path for path in results.rglob("*.json") if path.with_suffix(".json.gz").exists()]


def test_no_picture_is_stored_twice():
    found: dict[str, Path] = {}
    for path in tracked():
        if path.suffix in (".png", ".svg"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest not in found, f"{path} and {found[digest]} are one picture"
            found[digest] = path
    assert found, "there are pictures"
