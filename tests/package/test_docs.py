"""README and docs: what they name is there, their tables are what the documents say, README's first screen is whole."""

import re
from pathlib import Path

import pytest

from bench.report import pages

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCE = (".cuh", ".cu", ".h", ".cpp")
ROOMS = ("csrc/", "bench/", "docs/", "tests/", "pykernels/", "examples/", "cmake/")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> list[str]:
    """The lines outside code blocks."""
    lines, code = [], False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            lines.append(line)
    return lines


@by_page
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def named_files(page: Path) -> list[str]:
    """What a page names in backquotes that must be a file or folder of the clone: a path below a room, a source file, a
    committed document."""
    found = []
    for name in re.findall(r"`([^`\s]+)`", "\n".join(prose(page))):
        name = name.rstrip("/").partition(":")[0]
        committed = name.startswith(("h100-", "h200-")) and name.endswith((".json", ".json.gz"))
        given = name.startswith(("FILE.", "mine.")) or "NAME" in name  # the reader's own
        if not given and (name.startswith(ROOMS) or name.endswith(SOURCE) or committed):
            found.append(name)
    return found


@by_page
def test_files_that_a_page_names_are_there(page):
    made = {"docs/report/report.html"}
    for name in named_files(page):
        below = "bench/results/**/" + name if name.startswith(("h100-", "h200-")) else name
        if not any(ROOT.glob(below)) and name not in made:
            rooms = ("csrc", "examples", "tests")
            assert any(next((ROOT / room).rglob(name), None) for room in rooms), f"{name}: there is no such file"


@by_page
def test_lines_are_at_most_120_long(page):
    """Tables have a line a row, however long."""
    long = [line for line in prose(page) if len(line) > 120 and not line.lstrip().startswith(("|", "!["))]
    assert not long


@pytest.mark.parametrize("name", [name for name in pages.FILES if name != "docs/example-run.md"])
def test_tables_are_what_the_documents_say(name):
    """python -m bench.report.pages writes them."""
    text = (ROOT / name).read_text()
    assert "<!-- from documents: " in text
    assert pages.filled(text, pages.Documents(ROOT / "bench" / "results")) == text


def test_the_example_run_has_the_documents_arms():
    """Its figures; how they are laid out is the drivers' matter."""
    text = (ROOT / "docs" / "example-run.md").read_text()
    result = pages.Documents(ROOT / "bench" / "results")["h200-layer-llama-3.1-8b"]
    measured = [arm for arm in result["arms"] if arm["wall_us"]]
    assert len(measured) >= 10
    for arm in measured:
        names = r"\s+".join(re.escape(part) for part in (arm["backend"], arm["fusion"] or "-", arm["mode"]))
        assert re.search(rf"{names}\s+{re.escape(pages.microseconds(arm['wall_us']['p50']))}\s", text), arm["mode"]


def test_stale_tables_are_found(tmp_path, capsys):
    for name in pages.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "results").symlink_to(ROOT / "bench" / "results")
    readme = tmp_path / "README.md"
    good = readme.read_text()
    readme.write_text(re.sub(r"(graph-pdl` \| )[\d.]+", r"\g<1>1.0", good))
    here = f"--root={tmp_path}"
    assert pages.main(["--check", here]) == 1 and readme.read_text() != good
    assert "README.md" in capsys.readouterr().out
    assert pages.main([here]) == 0
    assert readme.read_text() == good and (tmp_path / "docs" / "h200-layer.png").exists()


def test_the_first_screen():
    """What it is, the picture, the table of five rows and the commands within 60 lines."""
    screen = (ROOT / "README.md").read_text().splitlines()[:60]
    text = "\n".join(screen)
    assert "](docs/h200-layer.png)" in text and text.count("\n| ") >= 9
    for needed in ("make layer", "make test", "docs/plugins.md", "docs/results.md", "CONTRIBUTING.md", "examples/"):
        assert needed in text, needed
    rows = [line for line in screen if re.search(r"`(sdpa|native).* \| [\d,.]+ \| [\d.]+% \|", line)]
    assert len(rows) == 5


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
