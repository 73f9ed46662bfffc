"""Reports: panels show the numbers they are given; a page is complete, self-contained, escaped, atomic, and says what the record says."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dig_core.errors import IncompatibleError
from dig_core.montecarlo import analysis

pytest.importorskip("matplotlib")

from dig_plugins import panels, report
from dig_plugins.panels import new_figure
from dig_plugins.panels.canvas import BLUE
from dig_plugins.panels.structures import overlay
from dig_plugins.scene import Scene, Shot, bonds_of, superposed
from dig_plugins.tasks import thinned
from dig_plugins.tasks.result import Run
from dig_plugins.weighing import acceptance_panels, energy_panel, weight_panels
from tests.plugins.pages import (
    BROWSERS,
    PICTURE,
    Page,
    browse,
    browser,
    looks_right,
    says_what_the_record_says,
    self_contained,
)

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def made(rng) -> tuple[report.Report, dict]:
    log_w = np.concatenate([rng.standard_normal(300), [-math.inf, -math.inf]])
    accepted = rng.random(302) < 0.4
    water = rng.standard_normal((4, 3, 3)) + [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    record = {
        "model": "<mine>", "acceptance": float(accepted.mean()), "raw_ess": analysis.effective_sample_size(log_w), "seed": 77,
        "seconds": 12.345, "longest_rejection_run": analysis.longest_rejection_run(accepted), "failed": {"energy": 2},
        "many": list(range(1000)), "gone": None,
    }  # fmt: skip
    table = report.Table(("", "a<b"), [("x & y", report.fact(record, "failed.energy")), ("of nothing", report.fact(record, "gone"))])
    shown = report.Report(
        "<A & B>", [*weight_panels(log_w), *acceptance_panels(accepted)], verdict=(False, "Cannot be trusted"), tables={"Part": table},
        scenes=[Scene.of([8, 1, 1], water, title="Water </script>")], notes=["made up & small"],
    )  # fmt: skip
    return shown, record


# The page ----------------------------------------------------------------------------------------------------------------


def test_a_report_is_complete_and_self_contained(made, tmp_path):
    path = report.write_report(tmp_path / "new", *made)
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.png"]
    page = self_contained(path)
    images = page.all("img")
    assert len(images) == 4 and all(base64.b64decode(one["src"].removeprefix(PICTURE)).startswith(PNG) for one in images)
    assert (path.parent / "report.png").read_bytes().startswith(PNG)
    assert {one["alt"] for one in images} == {panel.title for panel in made[0].panels}
    assert page.all("html") == [{"lang": "en"}] and len(page.all("canvas")) == 1
    assert {one.get("scope") for one in page.all("th")} == {"col", "row"}
    for words in ("<A & B>", "a<b", "x & y", "made up & small", "Water </script>", "Cannot be trusted", "<mine>"):
        assert words in page.text, words


def test_a_page_says_what_the_record_says(made, tmp_path):
    page = Page(report.write_report(tmp_path, *made))
    says_what_the_record_says(page, made[1])
    shown = dict(page.keyed)
    assert shown["seed"] == "77" and {text for key, text in page.keyed if key == "gone"} == {"-", "None"}
    assert "1000 entries, in run.json" in page.text
    wrong = {**made[1], "seed": 78}
    with pytest.raises(AssertionError, match="seed"):
        says_what_the_record_says(page, wrong)


def test_a_report_stands_beside_its_record_and_replaces_an_older_one(made, tmp_path):
    assert report.page_of(tmp_path / "a.xtc") == tmp_path / "a.html" and report.page_of(tmp_path) == tmp_path / "report.html"
    report.write_report(tmp_path / "a.xtc", *made)
    path = report.write_report(tmp_path / "a.xtc", report.Report("another"), {"seed": 78})
    assert "another" in Page(path).text and "12.345" not in Page(path).text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.png"]


def test_a_full_disk_leaves_the_older_report(made, tmp_path, monkeypatch):
    path = report.write_report(tmp_path, *made)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dig_core.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(tmp_path, *made)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib_the_page_says_so(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(report.write_report(tmp_path, *made))
    assert not page.all("img") and "dig-plugins[viz]" in page.text and page.all("canvas")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.skipif(browser() is None, reason=f"no browser is installed: none of {', '.join(BROWSERS)} is on PATH")
def test_a_browser_shows_it(made, tmp_path):
    """Without errors, every figure with a size, structures that turn; and it finds what is wrong with pages that are."""
    good = report.write_report(tmp_path / "good", *made)
    text = good.read_text(encoding="utf-8")
    pages = {
        "good": text, "script": text.replace('"use strict";', '"use strict"; absent();'),
        "image": text.replace(PICTURE, PICTURE + "AAAA"), "network": text.replace("<body>", '<body><img src="https://example.org/a.png">'),
    }  # fmt: skip
    for name, words in pages.items():
        (tmp_path / f"{name}.html").write_text(words, encoding="utf-8")
    found = dict(zip(pages, browse([tmp_path / f"{name}.html" for name in pages]), strict=True))
    looks_right(found["good"])
    assert len(found["good"]["images"]) == 4 and [scene["frames"] for scene in found["good"]["scenes"]] == [4]
    for name in ("script", "image", "network"):
        with pytest.raises(AssertionError):
            looks_right(found[name])


# Structures --------------------------------------------------------------------------------------------------------------


def test_scenes_hold_the_structures(rng):
    positions = rng.standard_normal((3, 5, 3))
    scene = Scene.of([6, 1, 1, 8, 26], positions, labels=["first"], style="balls", cell=4 * np.eye(3))
    held = json.loads(scene.data().replace("<\\/", "</"))
    found = np.array([frame["x"] for frame in held["frames"]]).reshape(3, 5, 3) / 100
    assert np.allclose(found, positions - positions.reshape(-1, 3).mean(0), atol=0.00501)
    assert [frame["label"] for frame in held["frames"]] == ["first", "structure 2", "structure 3"]
    with pytest.raises(IncompatibleError, match="positions"):
        Scene.of([6, 1], positions)
    notebook = scene._repr_html_()
    assert notebook.startswith("<iframe srcdoc=") and "http" not in notebook.replace("http-equiv", "")


def test_bonds_are_those_of_a_molecule():
    methane = np.array([[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [0.63, -0.63, -0.63], [-0.63, 0.63, -0.63]])
    assert bonds_of(np.array([6, 1, 1, 1, 1]), methane).tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]


def test_superposition_undoes_any_motion_and_no_reflection(rng):
    first = rng.standard_normal((6, 3))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    placed = superposed(np.stack([first, first @ turn + 3.0, first * [1, 1, -1]]))
    assert np.allclose(placed[1], placed[0]) and np.abs(placed[2] - placed[0]).max() > 0.1


def test_pictures_are_drawn_from_every_kth_structure(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(thinned, "_CHUNK", 16)
    positions, log_weights = rng.standard_normal((103, 4, 3)).astype(np.float32), rng.standard_normal(103)
    np.savez(tmp_path / "a.npz", log_weights=log_weights, positions=positions)
    for most, every in ((10, 11), (3, 35), (60, 2), (1000, 1)):
        found = thinned.thinned(tmp_path / "a.npz", log_weights, most)
        assert np.allclose(found.positions, 10.0 * positions[::every]) and np.array_equal(found.log_weights, log_weights[::every])


def test_a_notebook_shows_the_page(made, tmp_path):
    page = report.write_report(tmp_path, *made)
    shown = Run(None, made[1], "said", tmp_path, page)._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and shown.count("<") == 2
    assert Run(None, {}, "a < b", tmp_path)._repr_html_() == "<pre>a &lt; b</pre>"


def test_py3dmol_is_given_every_frame(rng):
    pytest.importorskip("py3Dmol")
    view = Scene.of([8, 1, 1], rng.standard_normal((4, 3, 3))).py3dmol()
    assert view.startjs.count("structure ") == 4


# Panels ------------------------------------------------------------------------------------------------------------------


def test_ramachandran_is_in_kt_wraps_and_keeps_one_scale():
    phi = np.radians([-90.0] * 20 + [-90.0 + 360.0] * 20 + [60.0] * 10)
    ax = new_figure(3, 3).subplots()
    mesh = panels.ramachandran(ax, phi, np.zeros(50), label="x")
    seen = np.ma.compressed(mesh.get_array())
    assert sorted(seen) == pytest.approx([0.0, math.log(4)])
    assert mesh.get_clim() == (0.0, 8.0)
    weighted = panels.ramachandran(ax, phi, np.zeros(50), weights=np.r_[np.ones(40), np.full(10, 4.0)])
    assert np.ma.compressed(weighted.get_array()) == pytest.approx([0.0, 0.0])


def test_profile_leaves_gaps_where_nothing_was_visited():
    found = analysis.Profile(np.arange(3.0), np.array([0.0, math.inf, 1.0]), np.array([0.1, math.nan, 0.2]))
    ax = new_figure(3, 3).subplots()
    panels.profile(ax, found, "x")
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]
    assert ax.get_ylim()[1] < 2.0


def test_acceptance_marks_the_longest_rejection_run():
    accepted = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], bool)
    ax = new_figure(3, 3).subplots()
    panels.trace_acceptance(ax, accepted)
    (span,) = ax.patches
    marked = span.get_path().transformed(span.get_patch_transform()).get_extents()
    assert (marked.x0, marked.x1) == (4, 7)
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(0.4)
    panels.trace_acceptance(new_figure(3, 3).subplots(), np.ones(5, bool))


def test_runs_of_rejections_are_counted(rng):
    accepted = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], bool)
    ax = new_figure(3, 3).subplots()
    panels.rejection_runs(ax, accepted)
    assert list(zip(*ax.lines[0].get_data(), strict=True)) == [(1, 1), (2, 1), (3, 1)]
    # A chain in which every proposal is as good as any other has runs as the dashed line says.
    panels.rejection_runs(ax := new_figure(3, 3).subplots(), rng.random(20000) < 0.5)
    (lengths, found), expected = ax.lines[0].get_data(), ax.lines[1].get_ydata()
    z = (found - expected[lengths - 1]) / np.sqrt(expected[lengths - 1])
    assert np.abs(z[found > 30]).max() < 4
    for none in (np.zeros(5, bool), np.ones(5, bool)):
        panels.rejection_runs(new_figure(3, 3).subplots(), none)


def test_ess_curve_ends_at_the_raw_value_and_survives_failed_proposals(rng):
    log_w = np.concatenate([np.full(20, -math.inf), rng.standard_normal(500)])
    ax = new_figure(3, 3).subplots()
    panels.ess_convergence(ax, log_w)
    assert ax.lines[0].get_xdata()[-1] == 520
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(analysis.effective_sample_size(log_w))


def test_weight_histogram_counts_every_proposal(rng):
    log_w = np.concatenate([rng.standard_normal(100), [-200.0, -math.inf]])
    ax = new_figure(3, 3).subplots()
    panels.weight_histogram(ax, log_w)
    assert sum(bar.get_height() for bar in ax.patches) == 101
    assert "zero weight: 1 of 102" in ax.texts[0].get_text() and "below -15" in ax.texts[0].get_text()


def test_histograms_are_weighted_and_lose_nothing(rng):
    values = np.concatenate([rng.standard_normal(99), [1e6, math.nan]])
    ax = new_figure(3, 3).subplots()
    panels.histograms(ax, {"plain": (values, None), "weighted": (values, np.where(values > 0, 1.0, 0.0))})
    steps = [patch.get_data() for patch in ax.patches if not patch.get_fill()]
    assert all(data.values.sum() == pytest.approx(1.0) for data in steps)
    plain, weighted = steps
    assert not weighted.values[weighted.edges[1:] < 0].any() and plain.edges[-1] < 1e6
    assert not energy_panel({"none": (np.full(3, math.nan), None)})


def test_calibration_line_has_slope_one(rng):
    u = rng.standard_normal(50)
    ax = new_figure(3, 3).subplots()
    panels.calibration(ax, u, -u - 7.0)
    x, y = ax.lines[0].get_data()
    assert np.allclose(y - x, 7.0)


def test_losses_of_stages_follow_each_other():
    log = {"step": np.array([1.0, 10.0]), "training": np.array([3.0, 2.0]), "validation": np.array([math.nan, 2.5])}
    ax = new_figure(3, 3).subplots()
    panels.losses(ax, {"first": log, "second": {**log, "validation": np.full(2, math.nan)}})
    assert ax.lines[0].get_xdata().tolist() == [1, 10] and ax.lines[2].get_xdata().tolist() == [11, 20]
    assert len(ax.lines) == 4  # a line between the stages; nothing was held out in the second


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_proposals_can_be_drawn(n, tmp_path):
    log_w, accepted = np.zeros(n), np.zeros(n, bool)
    shown = [*weight_panels(log_w), *acceptance_panels(accepted), *energy_panel({"all": (np.ones(n), None)})]
    report.write_report(tmp_path, report.Report("few", shown), {})
    assert not weight_panels(np.full(n, -math.inf))


def test_drawing_leaves_pyplot_alone_and_a_missing_matplotlib_is_named():
    code = (
        "import sys; from dig_plugins import report, panels; assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "try: panels.new_figure(1, 1)\n"
        "except ImportError as error: assert 'dig-plugins[viz]' in str(error)\n"
        "else: raise SystemExit(1)\n"
        "del sys.modules['matplotlib']\n"
        "panels.to_png(panels.new_figure(1, 1)); assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_structures_are_drawn_wherever_their_atoms_lie():
    """The nearest atom's colour is its own and the farthest's the palest, never past either by rounding."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    for seed in range(60):
        rng, ax = np.random.default_rng(seed), Figure().subplots()
        overlay(ax, [Shot(np.full(5, 7), rng.normal(size=(5, 3)), bonds) for _ in range(3)])
        shades = np.concatenate([lines.get_colors()[:, :3] for lines in ax.collections])
        assert len(ax.collections) == 6 and (shades >= to_rgb(BLUE)).all() and (shades <= 1).all()
