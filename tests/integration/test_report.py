"""The report of a real search: complete, safe, always the same, fresh while the run goes on, never in its way."""

import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.errors import InvalidInput
from evomerge.experiment.front_view import front_view
from evomerge.experiment.inspecting import open_run, read_summary
from evomerge.experiment.live_report import LiveReport
from evomerge.experiment.reporting import report_at_end
from evomerge.reports.progress import QuietView
from evomerge.store.event_log import EventLog
from evomerge.store.events import Resumed
from evomerge.store.run_dir import RunDir
from tests.integration.conftest import EXPERIMENT

SECTIONS = ["results", "convergence", "front", "coefficients", "cost", "failures", "provenance", "repeat"]
NASTY = '<script>alert(1)</script> & "more"'


class Page(HTMLParser):
    """Sections, tags, targets and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.targets: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.sections += [found["id"] or ""] if tag == "section" else []
        self.targets += [found[name] or "" for name in ("href", "src", "data", "action") if name in found]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def finished(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two objectives, whose description is out for mischief and whose folder has a blank."""
    folder = tmp_path_factory.mktemp("report")
    optimizer: dict[str, Any] = {"name": "nsga2", "population_size": 4}
    mapping = {**EXPERIMENT, "optimizer": optimizer, "budget": {"evaluations": 8}, "description": NASTY}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(mapping))
    assert evomerge.run(folder / "tiny.yaml", run_dir=folder / "a run").exit_code == 0
    return folder / "a run"


def test_the_page_has_every_section_and_the_numbers(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert page.sections == SECTIONS  # too few candidates for importance, no paths
    assert "could not be made" not in page.text
    assert "This part is missing" not in page.text
    view = front_view(finished)
    assert [name for name in page.ids if name.startswith("front-c")] == [f"front-{p.name}" for p in view.members]
    for point in view.points:
        for score in point.splits["search"].scores:
            assert f"{score.value:.3f}" in page.text
    assert page.text.count("uniform soup") > 2
    assert "8 of 8 candidates" in page.text
    assert "finished" in page.text
    assert "evomerge resume '" in page.text  # the folder has a blank
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())


def test_the_page_escapes_what_users_write_and_loads_nothing(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert NASTY in page.text
    assert not [target for target in page.targets if not target.startswith("#")]
    assert not re.search(r"url\((?!#)|@import", text)
    # Addresses may only be named, in words.
    assert not re.search(r"(?:href|src|xmlns)[^>]{0,9}=\s*[\"']?https?:", text)


def test_the_same_run_gives_the_same_files(finished: Path) -> None:
    page = (finished / "report.html").read_bytes()
    figures = {path.name: path.read_bytes() for path in (finished / "figures").iterdir()}
    assert set(figures) == {f"{name}.svg" for name in ("convergence", "front", "coefficients", "cost")}
    written = evomerge.report(finished, ["svg"])
    assert written[0].read_bytes() == page
    assert {path.name: path.read_bytes() for path in written[1:]} == figures
    with pytest.raises(InvalidInput) as caught:
        evomerge.report(finished, ["gif"], size="poster")
    assert len(caught.value.problems) == 2


def test_a_run_whose_models_are_gone_has_its_page_without_the_merge(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(finished, folder)
    experiment = yaml.safe_load((folder / "experiment.yaml").read_text())
    experiment["models"]["base"] = str(tmp_path / "gone")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    page = Page(evomerge.report(folder, ["svg"])[0].read_text())
    assert set(SECTIONS) <= set(page.sections)
    assert "the models of this run are not on this machine" in page.text
    assert "8 of 8 candidates" in page.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_report_is_kept_fresh_by_a_process_that_ends_with_the_run(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    run_dir = RunDir.open(copy, exclusive=True)
    live = LiveReport(run_dir, first_seconds=0.0, rest_seconds=0.1, rest_share=0.0)
    try:
        first = _wait_for(lambda: (copy / "report.html").exists() and (copy / "report.html").read_text())
        assert "finished" in first
        with EventLog(run_dir.events_path) as log:
            log.append(Resumed(time.time(), "test"))
        _wait_for(lambda: '"status running"' in (copy / "report.html").read_text())
        child = live._child
    finally:
        live.close()
        run_dir.close()
    assert child is not None
    assert child.returncode is not None
    assert not list(copy.glob(".report*"))


class Notes(QuietView):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_report_that_cannot_be_written_does_not_fail_the_run(finished: Path, tmp_path: Path) -> None:
    copy, view = tmp_path / "run", Notes()
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    (copy / "report.html").mkdir()
    opened = open_run(copy)
    report_at_end(opened.run_dir, opened.experiment, read_summary(opened.run_dir), view)
    (line,) = view.lines
    assert "the report could not be written" in line
    assert not list(copy.glob(".report*"))


def _wait_for(condition: Any, seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
