"""The ladders of the chapters: the recorded table, what is printed and drawn of it, its pictures, and what a GPU would print."""

import struct

import pytest

from dev.kernels import LAYERS, __main__, ladder, ladder_picture
from dev.kernels.ladder_table import Row, parse_table, read_table
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import SIMULATING
from tutorials import ladders

FUNCTIONS = [function for layer in LAYERS for function in ladder(layer)]
MOST_BYTES = 60_000  # of a picture


def test_the_recorded_table_has_every_rung_and_not_the_user_s():
    for layer in LAYERS:
        for function, rungs in ladder(layer).items():
            names = list(dict.fromkeys(row.rung for row in ladders.recorded(function)))
            assert len(names) == len(rungs), function
            assert names[1:-1] == [rung.__name__ for rung in rungs[1:-1]]
            assert "yours" not in names


def test_a_row():
    assert ladders.recorded("encoder_backward", "fp32")[1] == Row("encoder_backward", "block_per_token", "fp32", 0.161, 507.0, None, 0.121)
    assert ladders.recorded("matmul_forward")[-1] == Row("matmul_forward", "fast", "bf16", 0.060, 1121.0, 640.7, 0.875)


@pytest.mark.skipif(not SIMULATING, reason="on a GPU the ladder is measured")
def test_what_is_printed(capsys):
    ladders.show_ladder("encoder_backward", "matmul_forward", precision="fp32")
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == "NVIDIA H200, 2026-11-28, numba-cuda 0.30.4"
    assert header.split() == ["function", "rung", "ms", "rate", "of", "the", "ceiling"]
    assert lines[0].split() == ["encoder_backward", "plain", "fp32", "167.295", "0", "GB/s", "below", "0.05", "%"]
    assert lines[2].split() == ["encoder_backward", "fast", "fp32", "0.053", "1,544", "GB/s", "36.8", "%"]
    assert lines[3].split() == ["matmul_forward", "plain", "fp32", "6.429", "6.0", "TFLOP/s", "11.8", "%"]


@pytest.mark.parametrize("show", [ladders.show_ladder, ladders.draw_ladder, ladders.recorded])
def test_an_unknown_function_is_an_error_that_names_the_known_ones(show):
    with pytest.raises(UserError, match="encoder_forward, .* got 'encoder'"):
        show("encoder")


@pytest.mark.skipif(not SIMULATING, reason="on a GPU the ladder is measured")
def test_the_picture_of_a_chapter_has_a_bar_for_every_row(monkeypatch):
    shown = []
    monkeypatch.setattr(ladders, "present", lambda figure, alt: shown.append((figure, alt)))
    ladders.draw_ladder("encoder_forward", "encoder_backward")
    ((figure, alt),) = shown
    assert [len(panel.patches) for panel in figure.axes] == [5, 5]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [row.share for row in ladders.recorded("encoder_backward")]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][:2] == ["plain, fp32", "eight_per_thread, fp32"]
    assert "encoder_backward, fast, fp32: 0.053 ms, 36.8 %" in alt
    assert "a copy; NVIDIA H200, 2026-11-28" in figure.get_supxlabel()


def test_on_a_gpu_the_ladder_is_what_dev_kernels_prints(monkeypatch, capsys):
    def run(argv):
        assert argv == ["encoder"]
        print(ladders.RECORDED.read_text(encoding="utf-8").partition("\n")[2].replace("167.295", "  1.500"))

    monkeypatch.setattr(__main__, "run", run)
    monkeypatch.setattr(ladders, "SIMULATING", False)
    monkeypatch.setattr(ladders, "device_name", lambda: "NVIDIA X")
    ladders._measured_table.cache_clear()
    ladders.show_ladder("encoder_backward", precision="fp32")
    ladders._measured_table.cache_clear()
    title, _, plain, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith("NVIDIA X, 20") and ", numba-cuda " in title
    assert plain.split()[3] == "1.500"


# --- The table and its pictures ---


def test_the_pictures_beside_the_recorded_table_are_there():
    for layer in LAYERS:
        picture = ladders.RECORDED.with_name(f"ladder_{layer}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < MOST_BYTES, layer


def test_the_command_draws_the_layers_of_a_table(tmp_path, capsys):
    lines = ladders.RECORDED.read_text(encoding="utf-8").splitlines(keepends=True)
    table = tmp_path / "table.txt"
    table.write_text("".join(line for line in lines if not line.startswith(("gelu", "matmul"))), encoding="utf-8")
    assert ladder_picture.main([str(table)]) == 0
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(f"ladder_{layer}.png" for layer in set(LAYERS) - {"gelu", "matmul"})
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "ladder_residual.png")
    width, height = struct.unpack(">II", (tmp_path / "ladder_encoder.png").read_bytes()[16:24])
    assert width > height > 100


HEADER = "function                    rung                                answer         ms    GB/s  TFLOP/s  of the ceiling\n"


@pytest.mark.parametrize(
    "text",
    ["", "no table", HEADER + "gelu_forward plain fp32 right 0.1\n", HEADER + "gelu_forward plain fp32 right 0.1 2 3 4 50%\n",
     "function  rung  answer\ngelu_forward  plain  fp32  right\n"],
    ids=["empty", "text", "columns missing", "too many columns", "from the simulator"],
)  # fmt: skip
def test_another_file_is_an_error_in_one_line(text, tmp_path, capsys):
    path = tmp_path / "table.txt"
    path.write_text(text, encoding="utf-8")
    assert ladder_picture.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} must be a table that python -m dev.kernels printed") and error.count("\n") == 1


def test_a_missing_file_is_an_error_in_one_line(tmp_path, capsys):
    assert ladder_picture.main([str(tmp_path / "none.txt")]) == 2
    assert "none.txt must be a table" in capsys.readouterr().err


def test_a_table_without_a_title_and_with_a_wrong_result():
    table = parse_table(HEADER + "gelu_forward plain fp32 WRONG 0.151 2662 63.4%\nFAILED gelu\n")
    assert table.where == "" and len(table.rows) == 1


def test_every_function_of_the_table_is_in_a_ladder():
    assert {row.function for row in read_table(ladders.RECORDED).rows} == set(FUNCTIONS)
