"""The report: panels show the numbers they are given; the page is complete, self-contained, escaped and atomic."""

from __future__ import annotations

import base64
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dig_core.montecarlo import analysis

pytest.importorskip("matplotlib")

from dig_plugins import report

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def run(rng, name, visits, positive) -> report.Run:
    phi = np.where(rng.random(400) < positive, 1.0, -1.4) + 0.3 * rng.standard_normal(400)
    profile = analysis.free_energy_profile(
        phi, 24, limits=(-math.pi, math.pi), periodic=True, block=10, n_bootstrap=20, rng=rng
    )
    return report.Run(name, phi, rng.uniform(-math.pi, math.pi, 400), profile, 61.0, visits)


@pytest.fixture
def result(rng) -> report.DemoResult:
    log_w = np.concatenate([rng.standard_normal(300), [-math.inf, -math.inf]])
    dig = run(rng, "DiG + MD", 31, 0.1)
    return report.DemoResult(
        system="Alanine <dipeptide>, 300 K",
        dig=dig,
        md=run(rng, "plain MD", 1, 0.0),
        accepted=rng.random(302) < 0.4,
        log_weights=log_w,
        proposals_per_second=123.4,
        seed=77,
        versions={"torch": "2.13.0"},
        reference=dig.profile,
        notes=["made up & small"],
    )


def test_demo_report_is_complete_and_self_contained(result, tmp_path):
    path = report.demo_report(tmp_path / "new", result)
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.png"]
    picture = (path.parent / "report.png").read_bytes()
    assert picture.startswith(PNG)
    page = Page(path)
    (image,) = page.all("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == picture
    assert "31 visits" in image["alt"] and page.all("html") == [{"lang": "en"}]
    assert not page.all("script") and not page.all("link")
    outside = re.sub(r"data:image/png;base64,[^\"]*", "", path.read_text())
    assert not re.search(r"https?:|url\(|@import", outside)
    scopes = {attributes.get("scope") for attributes in page.all("th")}
    assert scopes == {"col", "row"} and len(page.all("table")) == 3


def test_demo_report_shows_the_statistics(result, tmp_path):
    text = Page(report.demo_report(tmp_path, result)).text
    for shown in (
        f"{100 * result.accepted.mean():.1f} %",
        f"{100 * analysis.effective_sample_size(result.log_weights):.1f} %",
        f"{100 * analysis.metropolis_acceptance(result.log_weights):.1f} %",
        f"{analysis.longest_rejection_run(result.accepted)} of 302",
        "123 a second",
        "77",
        "2.13.0",
        "Alanine <dipeptide>, 300 K",
        "made up & small",
        "long parallel tempering",
    ):
        assert shown in text


def test_demo_report_needs_no_reference_and_replaces_an_older_one(result, tmp_path):
    report.demo_report(tmp_path, result)
    text = Page(report.demo_report(tmp_path, replace(result, reference=None, seed=78))).text
    assert "78" in text and "long parallel tempering" not in text
    assert len(list(tmp_path.iterdir())) == 2


def test_write_report_escapes_and_leaves_no_half_file(tmp_path, monkeypatch):
    picture = report.Picture(PNG, 'an "alt" <text>', "a caption")
    table = report.Table(("", "a<b"), [("x & y", 1.5)])
    path = report.write_report(tmp_path, "<title>", [picture, picture], {"Part": table}, highlights={"n": "1 < 2"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report-2.png", "report.html", "report.png"]
    page = Page(path)
    assert page.all("img")[0]["alt"] == 'an "alt" <text>'
    assert all(part in page.text for part in ("<title>", "a<b", "x & y", "1.5", "1 < 2"))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dig_core.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(tmp_path, "another", [picture], {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_ramachandran_is_in_kt_wraps_and_keeps_one_scale():
    phi = np.radians([-90.0] * 20 + [-90.0 + 360.0] * 20 + [60.0] * 10)
    ax = report.new_figure(3, 3).subplots()
    mesh = report.ramachandran(ax, phi, np.zeros(50), label="x")
    seen = np.ma.compressed(mesh.get_array())
    assert sorted(seen) == pytest.approx([0.0, math.log(4)])
    assert mesh.get_clim() == (0.0, 8.0)
    weighted = report.ramachandran(ax, phi, np.zeros(50), weights=np.r_[np.ones(40), np.full(10, 4.0)])
    assert np.ma.compressed(weighted.get_array()) == pytest.approx([0.0, 0.0])


def test_profile_leaves_gaps_where_nothing_was_visited():
    found = analysis.Profile(np.arange(3.0), np.array([0.0, math.inf, 1.0]), np.array([0.1, math.nan, 0.2]))
    ax = report.new_figure(3, 3).subplots()
    report.profile(ax, found, "x")
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]
    assert ax.get_ylim()[1] < 2.0


def test_acceptance_marks_the_longest_rejection_run():
    accepted = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], bool)
    ax = report.new_figure(3, 3).subplots()
    report.trace_acceptance(ax, accepted)
    (span,) = ax.patches
    assert (span.get_x(), span.get_width()) == (4, 3)
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(0.4)
    report.trace_acceptance(report.new_figure(3, 3).subplots(), np.ones(5, bool))


def test_ess_curve_ends_at_the_raw_value_and_survives_failed_proposals(rng):
    log_w = np.concatenate([np.full(20, -math.inf), rng.standard_normal(500)])
    ax = report.new_figure(3, 3).subplots()
    report.ess_convergence(ax, log_w)
    assert ax.lines[0].get_xdata()[-1] == 520
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(analysis.effective_sample_size(log_w))


def test_weight_histogram_counts_every_proposal(rng):
    log_w = np.concatenate([rng.standard_normal(100), [-200.0, -math.inf]])
    ax = report.new_figure(3, 3).subplots()
    report.weight_histogram(ax, log_w)
    assert sum(bar.get_height() for bar in ax.patches) == 101
    assert "zero weight: 1 of 102" in ax.texts[0].get_text() and "below -15" in ax.texts[0].get_text()


def test_drawing_leaves_pyplot_alone_and_a_missing_matplotlib_is_named():
    code = (
        "import sys; from dig_plugins import report; assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "try: report.new_figure(1, 1)\n"
        "except ImportError as error: assert 'dig-plugins[viz]' in str(error)\n"
        "else: raise SystemExit(1)\n"
        "del sys.modules['matplotlib']\n"
        "report.to_png(report.new_figure(1, 1)); assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
