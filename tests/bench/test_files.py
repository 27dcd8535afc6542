"""What a user names as a file: regular files only, and whatever passes the check can be written."""

import os
import socket

import pytest
from inputs.documents import whole

from bench.core import document, files
from bench.core.errors import UsageError
from bench.core.paths import user_path


def make(kind, folder):
    """A path of the folder that is no regular file."""
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "loop":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "loop"])
def test_what_is_no_regular_file_is_neither_written_nor_read(tmp_path, kind):
    path = make(kind, tmp_path)
    before = os.lstat(path)
    with pytest.raises(UsageError, match="Too many levels" if kind == "loop" else f"and that is a {kind}"):
        files.check_writable(path, "--json")
    with pytest.raises(UsageError) as caught:
        files.read_file(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(OSError):
        files.write_atomically(path, b"new")
    assert os.lstat(path).st_ino == before.st_ino and os.listdir(tmp_path) == [path.name]


def test_a_device_is_not_replaced():
    with pytest.raises(UsageError, match="--json=/dev/null: must be a regular file, and that is a device"):
        files.check_writable(user_path("--json", "/dev/null"), "--json")


@pytest.mark.parametrize(
    "text, words",
    [
        ("~nosuchuser/x.json", "home of a user"),
        ("a\0b", "null"),
        ("x" * 256, "File name too long"),
        ("a/" * 3000, "too long"),
    ],
)
def test_a_path_that_cannot_be_is_refused_before_the_run(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        files.check_writable(user_path("--json", text), "--json")
    assert str(caught.value).startswith("--json=") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "é" * 125 + ".json", "a\nb.json"])
def test_whatever_passes_the_check_can_be_written(tmp_path, name):
    path = tmp_path / name
    files.check_writable(path, "--json")
    document.write_json(path, made := whole({"kind": "doctor"}))
    assert document.load(path) == made and os.listdir(tmp_path) == [name]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("there/real.json")
    for content in (b"one", b"two"):  # where nothing is yet, and where something is
        files.check_writable(link, "--json")
        files.write_atomically(link, content)
        assert link.is_symlink() and (tmp_path / "there" / "real.json").read_bytes() == content
    assert os.listdir(tmp_path / "there") == ["real.json"]


@pytest.mark.parametrize("umask, expected", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_respected_and_the_mode_of_a_file_that_is_there_is_kept(tmp_path, umask, expected):
    path = tmp_path / "x.json"
    before = os.umask(umask)
    try:
        files.write_atomically(path, b"one")
        assert path.stat().st_mode & 0o777 == expected
        path.chmod(0o640)
        files.write_atomically(path, b"two")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640 and path.read_bytes() == b"two"


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "_MOST_BYTES", 10)
    path = tmp_path / "x.json.gz"
    document.write_json(path, {"schema": document.SCHEMA})
    with pytest.raises(UsageError, match="unpacks to more"):
        document.load(path)
