"""Plots of one or several runs: what is drawn and where, published figures beside it, the HTML page, the heat maps, watching."""

import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from gpt2_numba import plot
from gpt2_numba.errors import UserError
from gpt2_numba.plotting.curves import Style, matplotlib_alone, overview, panels_of, short, thin
from gpt2_numba.plotting.layers import layers_figure
from gpt2_numba.plotting.page import page
from gpt2_numba.plotting.published import published_lines
from gpt2_numba.plotting.runs import read_run, read_runs

GPT2 = {"model": {"parameters": 124_475_904, "V": 50257}, "settings": {"val_data": "data/fineweb_val_*.bin"}}
TINY = {"model": {"parameters": 850_688, "V": 257}, "settings": {"val_data": None, "batch_size": 16}}


def write_run(directory, steps=6, header=None, statistics=(), accuracy=True, end=True, **of_steps):
    """The two logs of a run of `steps` steps of 100 tokens and an hour each."""
    directory.mkdir(parents=True, exist_ok=True)
    header = {"max_steps": steps, "tokens_per_step": 100, "machine": {"GPU": "H100 <80GB>"}} | (header or TINY)
    objects = [{"kind": "run", "step": 0, "seconds": 0, "format": 1, "time": "2026-11-28", "main_log_bytes": 0} | header]
    main = []
    for step in range(steps):
        loss = 5 - step / 10
        objects.append({"kind": "step", "step": step, "seconds": 3600 * (step + 1), "loss": loss, "learning_rate": 1e-3, "norm": 1.5, "ms": 9.5,
                        "loss_z": 0.5, "norm_z": -0.5, "tokens_per_second": 50_000.0, "mfu": 0.5, "host_bytes": 2**30} | of_steps)  # fmt: skip
        main.append(f"s:{step} trl:{loss:.4f} lr:0.001000 norm:1.50")
        if step % 2 == 0:
            objects.append({"kind": "validation", "step": step, "seconds": 3600 * step, "loss": loss + 0.25})
            main.append(f"s:{step} tel:{loss + 0.25:.4f}")
            if accuracy:
                objects.append({"kind": "accuracy", "step": step, "seconds": 3600 * step, "accuracy": 0.25})
    objects += [{"kind": "statistics", "step": step, "seconds": 0} | found for step, found in statistics]
    if end:
        objects.append({"kind": "end", "step": steps, "seconds": 3600 * steps, "ending": "all steps are done", "done": True})
    (directory / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in objects))
    (directory / "main.log").write_text("\n".join(main) + "\n")
    return directory


def found(layers, **more):
    statistics = {"rms": [0.5] * layers, "largest": [2.0] * layers, "zeros": [0.0] * layers, "not_finite": [0.0] * layers} | more
    return {"gradients": {"qkvw": statistics, "fcw": statistics}, "activations": {"residual3": statistics}}


# ---------------------------------------------------------------------------------------------------------- series


def test_tokens_and_hours_are_those_that_led_to_a_loss(tmp_path):
    run = read_run(write_run(tmp_path / "log", steps=4))
    for axis, expected in (("steps", [0, 1, 2, 3]), ("tokens", [0, 100, 200, 300]), ("hours", [0, 1, 2, 3])):
        x, losses = run.along("train_loss", axis)
        assert x.tolist() == expected and losses.tolist() == [5, 4.9, 4.8, 4.7]
        assert run.along("val_loss", axis)[0].tolist() == expected[::2]


def test_run_jsonl_is_more_precise_and_main_log_knows_more(tmp_path):
    directory = write_run(tmp_path / "log", steps=2)
    text = (directory / "run.jsonl").read_text()
    (directory / "run.jsonl").write_text(text.replace('"loss": 5.0', '"loss": 5.0000123'))
    (directory / "main.log").write_text("s:0 trl:5.0000 lr:0.001000 norm:1.50\ns:7 trl:4.0000 lr:0.001000 norm:1.50\n")
    steps, losses = read_run(directory).get("train_loss")
    assert steps.tolist() == [0, 1, 7] and losses.tolist() == [5.0000123, 4.9, 4.0]


def test_a_log_of_llmc_is_drawn_by_steps_only(tmp_path, capsys):
    (tmp_path / "main.log").write_text("s:0 tel:5.0\ns:0 trl:5.0 lr:0.001 norm:1.0\n")
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "x.png")]) == 0
    assert plot.main([str(tmp_path), "--x", "tokens"]) == 2
    assert "--x tokens needs the run.jsonl of every run" in capsys.readouterr().err


def test_runs_are_named_by_as_much_of_their_paths_as_it_takes(tmp_path):
    paths = [write_run(tmp_path / name / "log") for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/log", "b/log"]
    assert [run.name for run in read_runs(paths[:1])] == ["log"]
    assert [run.name for run in read_runs([paths[0], paths[0]])] == ["log", "log"]


def test_a_thinned_curve_keeps_its_ends_and_extremes():
    values = np.sin(np.arange(10_001.0))
    values[[7, 5000]] = 9, -9
    values[100:200] = np.nan
    x, kept = thin(np.arange(10_001), values, most=500)
    assert len(x) < 520 and (x[0], x[-1]) == (0, 10_000) and (np.diff(x) > 0).all()
    assert np.nanmax(kept) == 9 and np.nanmin(kept) == -9 and np.isnan(kept).any()
    np.testing.assert_array_equal(kept, values[x])
    assert thin(x, kept, most=10_000)[0] is x


# -------------------------------------------------------------------------------------------------- published lines


@pytest.mark.parametrize("header, baseline, loss, accuracy", [
    (GPT2, "auto", [("GPT-2 124M", 3.424958)], [("GPT-2 124M", 0.294463), ("GPT-3 125M", 0.337)]),
    (GPT2 | {"settings": {"val_data": "edu_fineweb_val_000000.bin"}}, "auto", [("GPT-2 124M", 3.2924)], [("GPT-2 124M", 0.294463), ("GPT-3 125M", 0.337)]),
    (GPT2 | {"model": {"parameters": 1_557_686_400, "V": 50257}}, "auto", [("GPT-2 1558M", 2.831273)], [("GPT-2 1558M", 0.488946), ("GPT-3 1.3B", 0.547)]),
    (GPT2 | {"settings": {"val_data": "stories_val_000000.bin"}}, "auto", [], [("GPT-2 124M", 0.294463), ("GPT-3 125M", 0.337)]),
    (GPT2 | {"model": {"parameters": 124_000_000, "V": 257}}, "auto", [], [("GPT-2 124M", 0.294463), ("GPT-3 125M", 0.337)]),
    ({}, "auto", [], []),
    ({"model": None, "settings": 3}, "auto", [], []),
    ({}, "774M", [("GPT-2 774M", 3.000580)], [("GPT-2 774M", 0.431986), ("GPT-3 760M", 0.510)]),
    (GPT2, "none", [], []),
])  # fmt: skip
def test_published_figures_are_drawn_where_they_mean_something(tmp_path, header, baseline, loss, accuracy):
    runs = [read_run(write_run(tmp_path / "log", header={"model": None} | header))]
    assert published_lines(runs, baseline) == {"val_loss": loss, "eval_accuracy": accuracy}


def test_none_where_there_is_nothing_to_compare(tmp_path):
    assert published_lines([read_run(write_run(tmp_path / "log", header=GPT2, accuracy=False))])["eval_accuracy"] == []


# -------------------------------------------------------------------------------------------------------- pictures


@pytest.fixture
def drawn(monkeypatch):
    """The Figures that were saved."""
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_there_is_a_panel_for_everything_that_is_logged(tmp_path, drawn):
    assert plot.main([str(write_run(tmp_path / "log", header=GPT2)), "--out", "x.svg"]) == 0
    assert titles(drawn[0]) == [
        "loss (nats per token)", "HellaSwag accuracy", "learning rate", "gradient norm (before clipping)", "z-scores", "tokens per second",
        "MFU (% of the bf16 peak)", "memory in use (GiB)",
    ]  # fmt: skip
    loss, accuracy = drawn[0].axes[:2]
    assert [text.get_text() for text in loss.texts + accuracy.texts] == ["GPT-2 124M", "GPT-2 124M", "GPT-3 125M"]
    (mfu,) = drawn[0].axes[6].lines
    assert mfu.get_ydata().tolist() == [50.0] * 6


def test_and_none_for_what_is_not(tmp_path):
    (tmp_path / "main.log").write_text("s:0 trl:5.0 lr:0.001 norm:1.0\n")
    assert panels_of([read_run(tmp_path)]) == ["loss", "rate", "norm"]


def test_the_axis_the_smoothing_and_the_top(tmp_path, drawn):
    flags = ["--out", "x.png", "--x", "tokens", "--smooth", "3", "--top", "4.5"]
    assert plot.main([str(write_run(tmp_path / "log")), *flags]) == 0
    raw, mean, *_ = drawn[0].axes[0].lines
    assert raw.get_xdata().tolist() == [0, 100, 200, 300, 400, 500] and mean.get_xdata().tolist() == [100, 200, 300, 400]
    np.testing.assert_allclose(mean.get_ydata(), [4.9, 4.8, 4.7, 4.6])
    assert mean.get_label() == "training (mean of 3 steps)" and drawn[0].axes[0].get_ylim()[1] == 4.5
    assert drawn[0].axes[0].get_xlabel() == "tokens"


def test_the_first_losses_of_a_long_run_do_not_take_all_the_height(tmp_path):
    lines = [f"s:{step} trl:{11 if step < 50 else 3 + step / 1e5:.4f} lr:0.001 norm:1.0" for step in range(3000)]
    (tmp_path / "main.log").write_text("\n".join(lines))
    with matplotlib_alone():
        low, high = overview([read_run(tmp_path)], "long", Style()).axes[0].get_ylim()
    assert 2.9 < low < 3.001 and 3.02 < high < 3.2


def test_every_run_has_its_colour_and_its_name(tmp_path, drawn):
    paths = [write_run(tmp_path / name) for name in ("first", "second")]
    assert plot.main([*map(str, paths), "--out", "x.png"]) == 0
    lines = drawn[0].axes[0].lines
    assert [line.get_label() for line in lines] == [
        "first",
        "second",
        "first, validation (last 4.8500)",
        "second, validation (last 4.8500)",
    ]
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[2] != colours[1] == colours[3]


def test_several_runs_are_drawn_into_the_current_directory(tmp_path, monkeypatch, capsys):
    paths = [str(write_run(tmp_path / name)) for name in ("first", "second")]
    monkeypatch.chdir(tmp_path)
    assert plot.main(paths) == 0 and (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == "wrote runs.png\n"


def test_an_svg_is_xml_with_a_class_for_each_run_and_the_same_twice(tmp_path):
    directory, out = write_run(tmp_path / "log"), tmp_path / "x.svg"
    for _ in range(2):
        assert plot.main([str(directory), "--out", str(out)]) == 0
        first, out = out, tmp_path / "y.svg"
    assert first.read_bytes() == (tmp_path / "x.svg").read_bytes()
    classes = {element.get("class") for element in ElementTree.parse(first).iter()}
    assert {"run-0 train", "run-0 val", "run-0"} <= classes
    assert [path.name for path in tmp_path.glob(".*")] == []  # no part of a file is left


def test_a_device_is_not_replaced_by_a_picture(tmp_path, capsys):
    directory = write_run(tmp_path / "log")
    (tmp_path / "x.png").mkdir()
    assert plot.main([str(directory), "--out", str(tmp_path / "x.png")]) == 2
    assert "a directory, not a regular file" in capsys.readouterr().err and (tmp_path / "x.png").is_dir()


@pytest.mark.parametrize("flags, message", [
    (["--x", "days"], "--x"), (["--smooth", "0"], "at least 1"), (["--smooth", "x"], "whole number"), (["--top", "nan"], "--top"),
    (["--out", "x.gif"], ".png or .svg"), (["--baseline", "1B"], "--baseline"), (["--watch", "0"], "at least 1"),
    (["--layers", "x.png"], "train with --stats-every"), (["--statistic", "mean"], "--statistic"), (["--html", "absent/x.html"], "choose another"),
])  # fmt: skip
def test_mistakes_give_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(write_run(tmp_path / "log")), *flags]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and message in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize("value, text", [(524_288, "524k"), (10e9, "10B"), (2.5e6, "2.5M"), (999, "999"), (0, "0"), (-1500, "-1.5k")])
def test_large_numbers_are_short(value, text):
    assert short(value) == text


# ---------------------------------------------------------------------------------------------------------- layers


def test_a_heat_map_has_a_row_for_each_layer_and_a_column_for_each_step(tmp_path):
    statistics = [(step, found(3, rms=[0.1, 0.2, "inf"], largest=[step + 1.0] * 3)) for step in (0, 2, 4)]
    run = read_run(write_run(tmp_path / "log", statistics=statistics))
    with matplotlib_alone():
        figure = layers_figure(run)
        meshes = [axes.collections[0] for axes in figure.axes if axes.get_visible() and axes.get_title(loc="left")]
        figure.canvas.draw()
    assert [mesh.get_array().shape for mesh in meshes] == [(3, 3)] * 3
    gradients, _, activations = (mesh.get_array() for mesh in meshes)
    assert gradients[0].tolist() == [0.1] * 3 and gradients.mask[2].all()  # what is not finite shows the background
    assert activations[0].tolist() == [1, 3, 5]


@pytest.mark.parametrize("statistic", ["rms", "not-finite"])
@pytest.mark.parametrize("statistics", [
    [(0, found(1))], [(0, {"gradients": {}, "activations": {}})], [(0, found(2, rms=[0.0, 0.0], largest=[0, 0]))],
    [(0, found(2)), (2, found(3))], [(0, found(2, rms="x", largest=4, zeros=None, not_finite=[[]]))], [(0, {"gradients": {"qkvw": 3}})],
], ids=["one layer, one step", "nothing", "zeros", "another model", "damaged", "damaged tensor"])  # fmt: skip
def test_heat_maps_of_little_or_odd_data(tmp_path, statistics, statistic):
    out = tmp_path / "layers.png"
    flags = ["--layers", str(out), "--statistic", statistic]
    assert plot.main([str(write_run(tmp_path / "log", statistics=statistics)), *flags]) == 0 and out.exists()


def test_each_run_has_its_own_heat_maps(tmp_path):
    paths = [str(write_run(tmp_path / name, statistics=[(0, found(2))])) for name in ("first", "second")]
    assert plot.main([*paths, "--layers", str(tmp_path / "layers.svg")]) == 0
    assert {path.name for path in tmp_path.glob("layers*")} == {"layers_1.svg", "layers_2.svg"}


# ------------------------------------------------------------------------------------------------------------ page


class Page(HTMLParser):
    """Reads a page; fails at tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.attributes = [], [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)
        for name, value in attributes:
            self.attributes.append((tag, name, value))
            self.ids += [value] * (name == "id")
            self.links += [value] * (name in ("href", "src", "xlink:href", "srcset"))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "input", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def two_runs(tmp_path):
    header = TINY | {"settings": TINY["settings"] | {"batch_size": 32, "model": "<script>alert(1)</script>"}}
    return read_runs([write_run(tmp_path / "<b>1"), write_run(tmp_path / "second", header=header, statistics=[(0, found(2))], end=False)])


def test_the_page_is_one_file_that_needs_no_other(two_runs):
    text = page(two_runs, "two", Style(published=published_lines(two_runs)))
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.links)
    own = {f"#{name}" for name in parsed.ids}
    assert {link for link in parsed.links if link.startswith("#")} <= own
    assert {f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", text)} <= own
    assert "url(http" not in text and "@import" not in text and "<link" not in text


def test_the_page_says_what_was_run_and_where(two_runs):
    text = page(two_runs, "two", Style())
    parsed = Page(text)
    assert "<b>1" in parsed.text and "<script>alert(1)" in parsed.text and "<script>alert" not in text  # escaped
    for part in ("H100 <80GB>", "6 of 6", "4.8500", "ended: all steps are done", "it is still running, or was killed", "600", "6 h 0 min"):
        assert part in parsed.text
    assert re.search(r'<tr class="differs"><th>batch size</th><td>16</td><td>32</td></tr>', text)
    assert "Layers of second" in parsed.text and "Layers of <b>1" not in parsed.text


def test_the_switches_hide_what_has_their_class(two_runs):
    parsed = Page(page(two_runs, "two", Style(published=published_lines(two_runs))))
    switches = {value for tag, name, value in parsed.attributes if name == "data-hides"}
    assert switches == {"run-0", "run-1", "train", "single", "val", "published"}
    classes = {part for tag, name, value in parsed.attributes if name == "class" for part in value.split()}
    assert switches - {"single"} <= classes  # single steps are apart only where there is a running mean
    assert [value for tag, name, value in parsed.attributes if (tag, name) == ("meta", "name")] == ["viewport"]


def test_a_page_of_a_run_of_llmc_has_no_tables(tmp_path):
    (tmp_path / "main.log").write_text("s:0 tel:5.0\ns:0 trl:5.0 lr:0.001 norm:1.0\n")
    parsed = Page(page([read_run(tmp_path)], "llm.c", Style()))
    assert "There is no run.jsonl" in parsed.text and "table" not in {tag for tag, *_ in parsed.attributes}


def test_only_a_page_that_is_drawn_again_reloads(two_runs):
    assert "setTimeout(() => location.reload(), 5000)" in page(two_runs, "two", Style(), reload_seconds=5)
    assert "location.reload" not in page(two_runs, "two", Style())


# ----------------------------------------------------------------------------------------------------------- watch


def test_watching_draws_when_a_log_has_grown_and_stops_at_the_end(tmp_path, monkeypatch, capsys):
    directory, out = tmp_path / "log", tmp_path / "page.html"
    stages, pages = [], []

    def sleep(seconds):
        assert seconds == 3
        pages.append(out.read_text() if out.exists() else None)
        if len(stages) < 5:
            stages.append(len(pages))
            if len(stages) == 1:
                directory.mkdir()
            elif len(stages) == 2:
                write_run(directory, steps=2, end=False)
            elif len(stages) == 3:
                with open(directory / "run.jsonl", "a") as file:
                    file.write('{"kind": "st')  # half a line, for the moment
            elif len(stages) == 5:
                write_run(directory, steps=4)
            return
        raise AssertionError("watching goes on after the end")

    monkeypatch.setattr(plot, "time", SimpleNamespace(sleep=sleep))
    assert plot.main([str(directory), "--html", str(out), "--watch", "3"]) == 0
    printed, warnings = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].startswith("waiting: ") and warnings == ""
    assert [line for line in lines if not line.startswith("waiting: ")] == [
        f"wrote {out} (log: 2 steps)", f"wrote {out} (log: 2 steps)", f"wrote {out} (log: 4 steps)",
    ]  # fmt: skip
    assert "location.reload(), 3000" in pages[-1] and "location.reload" not in out.read_text()


def test_a_run_that_has_done_nothing_yet_is_a_users_mistake(tmp_path):
    directory = write_run(tmp_path / "log", steps=0)
    with pytest.raises(UserError, match="at least one finite loss"):
        plot.plot_losses(directory / "main.log", tmp_path / "x.png", "none")
    assert math.isnan(read_run(write_run(tmp_path / "log", loss="inf", steps=1)).get("train_loss")[1][0])
