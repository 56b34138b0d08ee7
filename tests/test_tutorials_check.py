"""The check of the tutorials: it passes every solution, refuses every skeleton and every planted fault with the hint that names it.

Then its parts: what a crash, an endless loop or a file that is not Python end in; counting; drawing; hints; the command.
"""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.layer_checks import LAYERS, Sizes, layer_functions
from gpt2_numba.layer_checks.sizes import ONES
from tests.test_ptx import environment, missing_parts
from tutorials import make_exercises
from tutorials.check import check, cli, drawing, hints, running
from tutorials.check.compiling import describe_arguments, first_line
from tutorials.check.counting import bank_turns, busiest_thread, transactions, warp_accesses
from tutorials.check.examining import examine
from tutorials.check.exercise import Counts, Exercise, Mistake, accumulated, read, written
from tutorials.check.exercises import find, names
from tutorials.check.failures import Failure
from tutorials.check.host_exercises import HostExercise, host_exercise
from tutorials.check.layer_exercises import layer_exercise
from tutorials.check.printing import print_verdict
from tutorials.check.verdict import Verdict
from tutorials.check.watching import watch

pytestmark = pytest.mark.skipif(not SIMULATING, reason="the check runs kernels in Numba's simulator, which is off")

SMALL = Sizes(B=2, T=3, C=5, NH=1, V=11, Vp=13, OC=7)
SOLUTIONS = {name: make_exercises.solution_file(name).read_text(encoding="utf-8") for name in names()}
COMPILED = "float64", "local"  # kinds that only the compiled code shows
WRONG = {f"{name}: {wrong.what}": (name, wrong) for name in names() for wrong in find(name).wrong}


def changed(name, changes):
    """The text of a solution with some of it replaced."""
    text = SOLUTIONS[name]
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def examined(directory, name, text):
    """The Record of a file with this text. Raises Failure."""
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return examine(find(name), path)


def failure_of(directory, name, text):
    with pytest.raises(Failure) as raised:
        examined(directory, name, text)
    return raised.value


def first_hint(name, failure):
    return hints.fitting(failure.kind, failure.hint, find(name).hints)[0]


# ------------------------------------------------------------------------------------------------------------- every exercise


@pytest.mark.parametrize("name", names())
def test_a_solution_passes_with_the_least_possible_accesses(name, tmp_path):
    exercise, record = find(name), examined(tmp_path, name, SOLUTIONS[name])
    if record is not None:
        counts, least = busiest_thread(record), exercise.least
        assert counts == (exercise.taken or least)
        assert all(getattr(least, kind) <= count for kind, count in vars(counts).items()) and exercise.taken != least


@pytest.mark.parametrize("name", [name for name in names() if name != "00_float32"])
def test_a_skeleton_fails_with_a_hint(name, tmp_path):
    failure = failure_of(tmp_path, name, make_exercises.skeleton(SOLUTIONS[name]))
    planted = [wrong.kind for wrong in find(name).wrong if wrong.what == "as it was given"]
    kinds = planted or ["not written", "not launched", "race"] + ["value"] * isinstance(find(name), HostExercise)
    assert failure.kind in kinds
    assert first_hint(name, failure)


@pytest.mark.parametrize("case", [case for case, (_, wrong) in WRONG.items() if wrong.kind not in COMPILED])
def test_a_wrong_answer_is_refused_with_the_hint_that_names_it(case, tmp_path):
    name, wrong = WRONG[case]
    failure = failure_of(tmp_path, name, changed(name, wrong.changes))
    assert failure.kind == wrong.kind, str(failure)
    assert wrong.hint in first_hint(name, failure)


@pytest.mark.parametrize("name", names())
def test_an_exercise_is_complete(name):
    """The learner's file, without what a learner has written, is its solution without some lines; there are hints, and wrong answers."""
    skeleton = make_exercises.skeleton(SOLUTIONS[name])
    assert make_exercises.skeleton(make_exercises.exercise_file(name).read_text(encoding="utf-8")) == skeleton
    lines = iter(SOLUTIONS[name].splitlines())
    assert all(line in lines for line in skeleton.splitlines())
    assert skeleton != SOLUTIONS[name] and f"python -m tutorials.check {name}\n" in skeleton
    exercise = find(name)
    assert len(exercise.wrong) >= 2 and sum(map(len, exercise.hints.values())) >= 2


def test_the_missing_barrier_changes_no_result(tmp_path):
    """What 00_find_the_barrier claims: without the race detector its skeleton passes."""
    with mock.patch("gpt2_numba.gpu.race_detector.Cell.conflict_with", lambda self, access: None):
        examined(tmp_path, "00_find_the_barrier", make_exercises.skeleton(SOLUTIONS["00_find_the_barrier"]))


def test_the_silent_float64_changes_no_result(tmp_path):
    examined(tmp_path, "00_float32", make_exercises.skeleton(SOLUTIONS["00_float32"]))


COMPILE = """
import json, sys
from pathlib import Path
from tutorials.check.compiling import compile_kernels
for path, kernels in json.loads(sys.argv[1]):
    print(json.dumps(compile_kernels(Path(path), kernels)))
"""


def test_solutions_compile_without_float64_and_the_planted_ones_are_found(tmp_path):
    if missing := missing_parts():
        pytest.skip(f"no CUDA compiler ({missing})")
    texts = {name: SOLUTIONS[name] for name in names() if not isinstance(find(name), HostExercise)}
    planted = {case: changed(name, wrong.changes) for case, (name, wrong) in WRONG.items() if wrong.kind in COMPILED}
    jobs = []
    for number, (case, text) in enumerate((texts | planted).items()):
        path = tmp_path / f"file_{number}.py"
        path.write_text(text, encoding="utf-8")
        launches = examine(find(case.partition(":")[0]), path).launches
        jobs.append((str(path), {launch.kernel.__name__: describe_arguments(launch.arguments) for launch in launches}))
    done = subprocess.run([sys.executable, "-c", COMPILE, json.dumps(jobs)], env=environment(), capture_output=True, text=True, check=True)
    results = dict(zip([*texts, *planted], map(json.loads, done.stdout.splitlines()), strict=True))
    for case, kernels in results.items():
        assert kernels and all(result["error"] == "" for result in kernels.values()), (case, kernels)
        lines, local = ({line for result in kernels.values() for line in result[kind]} for kind in COMPILED)
        kind = WRONG[case][1].kind if case in planted else ""
        assert bool(lines) is (kind == "float64"), case
        assert not find(case.partition(":")[0]).local_refused or bool(local) is (kind == "local"), case
        source = (texts | planted)[case].splitlines()
        assert not case.startswith("00_float32: ") or ["FREEZING) * RATIO" in source[line - 1] for line in lines] == [True]


# ----------------------------------------------------------------------------------------------------- whatever a file contains

KERNEL = "    i = cuda.threadIdx.x\n    out[i] = TWO * inp[i]\n"
LAUNCH = "double_kernel[1, inp.shape[0]](out, inp)"


@pytest.mark.parametrize("changes, kind, message", [
    ({"TWO * inp[i]": "TWO * inp[i"}, "syntax", "line 22: this is not Python: '[' was never closed\n    out[i] = TWO * inp[i"),
    ({"import numpy": "import nump"}, "load", "line 11: ModuleNotFoundError: No module named 'nump'\n    import nump as np"),
    ({"TWO = np.float32(2)": "TWO = 1 / 0"}, "load", "line 14: ZeroDivisionError: division by zero\n    TWO = 1 / 0"),
    ({"def double(": "def dobble("}, "function", "the file does not define the function double(out, inp)"),
    ({"def double(out, inp)": "def double(inp, out)"}, "function", "the function must be double(out, inp), and is double(inp, out)"),
    ({"def double(": "@cuda.jit\ndef double("}, "function", "double must be an ordinary function, which launches the kernel: without @cuda.jit"),
    ({LAUNCH: "pass"}, "not launched", "double launches no kernel: nothing has run"),
    ({LAUNCH: "double_kernel(out, inp)"}, "launch",
        "line 28: a kernel is called without its numbers of blocks and threads: kernel[blocks, threads](...)\n    double_kernel(out, inp)"),
    ({"[1, ": "[0, "}, "launch", "line 28: it launches 0 blocks of 5 threads: nothing runs\n    double_kernel[0, inp.shape[0]](out, inp)"),
    ({"[1, inp.shape[0]]": "[1, (64, 32)]"}, "launch",
        "line 28: it launches blocks of 2,048 threads: a block has at most 1,024\n    double_kernel[1, (64, 32)](out, inp)"),
    ({"[1, ": "[1 / 1, "}, "launch",
        "line 28: the number of blocks must be an integer, got 1.0: // divides integers\n    double_kernel[1 / 1, inp.shape[0]](out, inp)"),
    ({"TWO *": "TOO *"}, "error", "line 22: thread 0 of block 0: NameError: name 'TOO' is not defined\n    out[i] = TOO * inp[i]"),
    ({"TWO * inp[i]": "{}[i]"}, "error", "line 22: thread 0 of block 0: KeyError: 0\n    out[i] = {}[i]"),
    ({"out[i] = TWO * inp[i]": "raise SystemExit"}, "error", "line 22: thread 0 of block 0: SystemExit: the code ends the program\n    raise SystemExit"),
    ({"inp[i]\n": "inp[i + 1]\n"}, "bounds", "inp[5]: thread 4 read it (line 22), out of bounds for shape (5,)\n    line 22: out[i] = TWO * inp[i + 1]"),
    ({"out[i] = TWO * inp[i]": "inp[i] = out[i] = TWO * inp[i]"}, "input",
        "inp[0] is only to be read, but thread 0 of block 0 wrote to it\n    line 22: inp[i] = out[i] = TWO * inp[i]"),
    ({"TWO * inp[i]": "TWO * inp[i] if i != 3 else TWO"}, "value",
        "out[3] is 2, and must be -5.8499 (1 of 5 elements is wrong): thread 3 of block 0 wrote it\n    line 22: out[i] = TWO * inp[i] if i != 3 else TWO"),
    ({"    out[i] =": "    if i < 2:\n        out[i] ="}, "not written", "out[2] was never written, and must become -3.147 (3 of 5 elements are wrong)"),
    ({"out[i] = TWO": "x = TWO", LAUNCH: f"{LAUNCH}\n    out[:] = TWO * inp.copy_to_host()"}, "host",
        "out[0] is right, but no thread of a kernel wrote it: the kernel must do the work"),
])  # fmt: skip
def test_each_mistake_ends_in_one_clear_message(changes, kind, message, tmp_path):
    failure = failure_of(tmp_path, "00_double", changed("00_double", changes))
    assert (failure.kind, str(failure)) == (kind, message)


@pytest.mark.parametrize("contents", [None, b"\xff\xfe", b"\x00"], ids=["no file", "not text", "a null byte"])
def test_a_file_that_is_not_a_program(contents, tmp_path):
    path = tmp_path / "file.py"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(Failure) as raised:
        examine(find("00_double"), path)
    assert raised.value.kind == ("syntax" if contents == b"\x00" else "file")


@pytest.mark.parametrize("body, seconds, kind, message", [
    ("    while True:\n        pass\n", 2, "time", "it was still running after 2 seconds, in line 2[12]:\n    (while True:|pass)"),
    ("    while True:\n        cuda.syncthreads()\n", 2, "time", "in line 22:\n    cuda.syncthreads\\(\\)"),
    ("    import os; os._exit(3)\n", 60, "crash", "the process of your code ended without a word \\(exit code 3\\)"),
], ids=["endless loop", "endless barriers", "exit"])  # fmt: skip
def test_what_never_ends_or_ends_the_process(body, seconds, kind, message, tmp_path):
    path = tmp_path / "file.py"
    path.write_text(changed("00_double", {KERNEL: body}), encoding="utf-8")
    verdict = running.simulate("00_double", path, seconds)
    assert verdict.failure == kind and re.search(message, verdict.message) and verdict.size == "N = 5"


def test_the_whole_check(tmp_path, monkeypatch, capsys):
    """What is printed for a pass, with what the learner's code prints, and all drawings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(running, "look_at_compiled_code", lambda *_: None)
    path = tmp_path / "file.py"
    path.write_text(changed("00_double", {"    out[i] =": "    print('thread', i)\n    out[i] ="}), encoding="utf-8")
    assert check("00_double", path, draw=True)
    printed = capsys.readouterr().out
    assert printed.startswith("your code printed:\n    thread 0\n    thread 1\n") and "thread 4\n    thread 0" in printed
    assert "pass: 00_double, right at 6 sizes, no race\n" in printed and re.search(r"global reads +1 +1\n", printed)
    assert "thread 31 ........|........|........|.......#" in printed and "coalesced" in printed


def test_a_further_hint_each_time_until_it_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = Verdict("00_double", tmp_path / "file.py", "value", "out[0] is 1, and must be 2", "N = 5", hints={"": ["one", "two"]})
    beginning = "not yet: 00_double, with N = 5\n  out[0] is 1, and must be 2\n  "
    for hint in ("hint: one (1 more)", "hint: two", "These were all the hints for it. A solution: tutorials/solutions/00_double.py"):
        print_verdict(failed)
        assert capsys.readouterr().out == f"{beginning}{hint}\n"
    print_verdict(Verdict("00_double", failed.path, "", "right", table="a table"))
    assert capsys.readouterr().out == "pass: 00_double, right\n  a table\n"
    print_verdict(failed)
    assert "hint: one" in capsys.readouterr().out


@pytest.mark.parametrize("name, reports, failure, text", [
    ("00_double", [{"k": {"error": "", "line": None, "float64": [], "local": []}}], "", "compiled for a GPU: no float64"),
    ("00_double", [{"k": {"error": "", "line": None, "float64": [22], "local": []}}], "", "float64, 8 bytes where 4 will do:\n    line 22: out[i] = TWO * inp[i]\nThat"),
    ("00_float32", [{"k": {"error": "", "line": None, "float64": [29], "local": []}}], "float64", "celsius[i] = (fahrenheit[i] - FREEZING) * RATIO"),
    ("00_double", [{"k": {"error": "no sum", "line": 22, "float64": [], "local": []}}], "compile", "cannot compile k: no sum\n    line 22: out[i] = TWO * inp[i]"),
    ("03_read_once", [{"k": {"error": "", "line": None, "float64": [], "local": [25]}}], "local", "not in registers, but in memory"),
    ("00_double", [{"k": {"error": "", "line": None, "float64": [], "local": [22]}}], "", "compiled for a GPU: no float64"),
    ("00_double", [{"missing": "no library"}], "", "not looked for: float64, and whether it compiles for a GPU; that takes a compiler"),
    ("00_float32", [{"missing": "no library"}], "compiler", "this exercise is about compiled code; that takes a compiler"),
    ("00_double", [], "", "the compiler's process failed (exit code 7)"),
])  # fmt: skip
def test_what_the_compiler_finds(name, reports, failure, text, monkeypatch):
    monkeypatch.setattr(running, "run_module", lambda *_, **__: (reports, 7))
    exercise = find(name)
    verdict = Verdict(
        name,
        make_exercises.solution_file(name),
        "",
        hints=exercise.hints,
        float64_refused=exercise.float64_refused,
        local_refused=exercise.local_refused,
    )
    running.look_at_compiled_code(verdict)
    assert verdict.failure == failure and verdict.passed is (not failure)
    assert text in (verdict.message if failure else "\n".join(verdict.notes))


def test_numba_s_errors_are_cut_to_one_line():
    message = (
        "Failed in cuda mode pipeline (step: nopython frontend)\nNo implementation of function Function(<built-in function sum>) found "
        "for signature:\n \n >>> sum(list)\nDuring: typing of call at /tmp/file.py (22)\n"
    )
    assert first_line(message) == ("No implementation of function sum", 22)


# ----------------------------------------------------------------------------------------------------------------- its parts

SUM = Exercise(
    function="add_rows",
    arrays=lambda random, N: {"dbias": accumulated(N), "dout": read(random.standard_normal((2, N)))},
    reference=lambda dout: {"dbias": dout.sum(axis=0)},
    error=lambda dout: {"dbias": 1e-6},
    sizes=({"N": 5},),
    least=Counts(),
    hints={},
)
ADD_ROWS = """
from numba import cuda
@cuda.jit
def kernel(dbias, dout):
    i = cuda.threadIdx.x
    dbias[i] {} dout[0, i] + dout[1, i]
def add_rows(dbias, dout):
    kernel[1, dbias.shape[0]](dbias, dout)
"""


LAYER_OF = {
    name: tuple(layer for layer in LAYERS if name in layer_functions(layer)) for name in FUNCTIONS
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_layer_function_can_be_an_exercise(function, tmp_path):
    """The package's own functions pass; the counts are those of the first call."""
    path, layers = tmp_path / "file.py", LAYER_OF[function]
    path.write_text(f"from {FUNCTIONS[function].__module__} import {function}\n", encoding="utf-8")
    exercise = layer_exercise(function=function, layers=layers, sizes=(ONES, SMALL), least=Counts(), hints={})
    assert busiest_thread(examine(exercise, path)).global_reads >= 1
    assert exercise.format_size(SMALL).count("=") >= 1
    path.write_text(f"def {function}({', '.join(exercise.parameters)}):\n    pass\n", encoding="utf-8")
    with pytest.raises(Failure, match="launches no kernel"):
        examine(exercise, path)


RESIDUAL = """
from numba import cuda
@cuda.jit
def kernel(out, inp, branch):
    row, c = cuda.blockIdx.x, cuda.threadIdx.x
    out[row, c] = {}
def residual_forward(out, inp, branch):
    kernel[out.shape[0], out.shape[1]](out, inp, branch)
"""


def test_a_mistake_in_a_layer_function_has_its_hint(tmp_path):
    mistake = Mistake(lambda inp, s, **_: {"out": inp if s is SMALL else None}, "The branch has been forgotten.")
    exercise = layer_exercise(
        function="residual_forward", layers=("residual",), sizes=(SMALL,), least=Counts(), hints={}, mistakes=(mistake,)
    )
    for line, hint in ("inp[row, c]", mistake.hint), ("branch[row, c]", ""):
        (tmp_path / "file.py").write_text(RESIDUAL.format(line), encoding="utf-8")
        with pytest.raises(Failure, match=r"out\[0, 0\] is .*, and must be .* thread 0 of block 0 wrote it") as raised:
            examine(exercise, tmp_path / "file.py")
        assert (raised.value.kind, raised.value.hint, raised.value.size) == ("value", hint, "N = 6, C = 5")


HOST = host_exercise(
    function="halve",
    arguments=lambda random, N: {"out": np.full(N, np.nan), "inp": random.standard_normal(N), "factor": 2, "names": {"a": [1, 2]}},
    reference=lambda out, inp, factor, names: {"out": inp / factor, "return": {"sum": inp.sum() / factor, "name": "a", "sizes": [1, 2]}},
    sizes=({"N": 3},),
    hints={},
    mistakes=(Mistake(lambda out, inp, factor, names: {"out": inp * factor}, "Divide."),),
)
RIGHT = "    out[:] = inp / factor\n    return {'sum': out.sum(), 'name': 'a', 'sizes': [1, 2]}\n"


@pytest.mark.parametrize("changes, kind, message, hint", [
    ({}, None, "", ""),
    ({"/ factor": "* factor"}, "value", r"out\[0\] is .*, and must be .* \(3 of 3 elements are wrong\)", "Divide."),
    ({"[:] = inp": " = inp"}, "not written", r"out\[0\] was never written", ""),
    ({"[:] = inp / factor": "[1:] = inp[1:] / factor"}, "value", r"out\[0\] is nan, and must be", ""),
    ({"return": "result ="}, "not written", "halve returns nothing", ""),
    ({"'a',": "'b',"}, "value", r"result\['name'\] is 'b', and must be 'a'", ""),
    ({"[1, 2]": "[1]"}, "value", r"result\['sizes'\] must have 2 items, got \[1\]", ""),
    ({"[1, 2]": "[1, 'x']"}, "value", r"result\['sizes'\]\[1\] must be a number, got 'x'", ""),
    ({"[1, 2]": "[1, [2]]"}, "value", r"result\['sizes'\]\[1\] must have the shape \(\), and has \(1,\)", ""),
    ({"'sum'": "'sums'"}, "value", "what it returns must be a dict with the keys sum, name, sizes", ""),
    ({"    return": "    inp[0] = 1\n    return"}, "input", "inp is only to be read, but has changed", ""),
    ({"    return": "    names['a'][0] = 2\n    return"}, "input", "names is only to be read, but has changed", ""),
    ({"    return": "    1 / 0\n    return"}, "error", "line 3: ZeroDivisionError: division by zero\n    1 / 0", ""),
])  # fmt: skip
def test_a_function_without_kernels(changes, kind, message, hint, tmp_path):
    text = "def halve(out, inp, factor, names):\n" + RIGHT
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "file.py").write_text(text, encoding="utf-8")
    if kind is None:
        assert examine(HOST, tmp_path / "file.py") is None
        return
    with pytest.raises(Failure, match=message) as raised:
        examine(HOST, tmp_path / "file.py")
    assert (raised.value.kind, raised.value.hint, raised.value.size) == (kind, hint, "N = 3")


def test_bits_are_compared_where_the_tolerance_is_zero(tmp_path):
    exercise = host_exercise(
        function="total", arguments=lambda random, N: {"x": random.standard_normal(N).astype(np.float32)}, tolerance=0,
        reference=lambda x: {"return": np.cumsum(x)[-1]}, sizes=({"N": 1000},), hints={},
    )  # fmt: skip
    for body, expectation in (
        ("np.cumsum(x)[-1]", nullcontext()),
        ("np.cumsum(x[::-1])[-1]", pytest.raises(Failure, match="what it returns is .*, and must be")),
        ("float(np.cumsum(x)[-1])", pytest.raises(Failure, match="must be float32, and is float64")),
    ):
        (tmp_path / "file.py").write_text(f"import numpy as np\ndef total(x):\n    return {body}\n", encoding="utf-8")
        with expectation:
            examine(exercise, tmp_path / "file.py")


@pytest.mark.parametrize("operator, expectation", [("+=", nullcontext()), ("=", pytest.raises(Failure, match="dbias\\[0\\] is"))])
def test_what_is_accumulated_starts_with_ones(operator, expectation, tmp_path):
    (tmp_path / "file.py").write_text(ADD_ROWS.format(operator), encoding="utf-8")
    with expectation:
        examine(SUM, tmp_path / "file.py")


@cuda.jit
def strided_kernel(out, inp, stride):
    values = cuda.shared.array(1024, float32)
    i = cuda.threadIdx.x
    values[i * stride] = inp[i * stride]
    cuda.syncthreads()
    out[i] = values[i * stride]


@pytest.mark.parametrize("stride, read_pieces, turns", [(1, 4, 1), (2, 8, 2), (8, 32, 8), (32, 32, 32), (31, 32, 1)])
def test_pieces_and_bank_conflicts(stride, read_pieces, turns):
    with watch() as seen:
        strided_kernel[1, 32](np.zeros(32, np.float32), np.zeros(1024, np.float32), stride)
    assert transactions(seen) == read_pieces + 4
    assert {bank_turns(group) for group in warp_accesses(touch for touch in seen.touches if touch.is_shared)} == {turns}
    assert busiest_thread(seen) == Counts(global_reads=1, global_writes=1, shared_reads=1, shared_writes=1)
    assert ("bank conflicts" in seen.table()) is (turns > 1)
    assert seen.launches[0].barriers == 1


@pytest.mark.parametrize("memory, stride, row, summary", [
    ("inp", 1, "  thread  1 .#......|........|........|........", "32 threads read 128 bytes; 4 pieces of 32 bytes, 128 bytes, are moved: coalesced"),
    ("inp", 8, "  thread  1 ..#." + 60 * ".", "32 threads read 128 bytes; 32 pieces of 32 bytes, 1,024 bytes, are moved: not coalesced"),
    ("out", 8, "  thread  1 .#......|........|........|........", "32 threads write 128 bytes; 4 pieces of 32 bytes, 128 bytes, are moved: coalesced"),
    ("values", 8, None, "32 threads read shared memory in 8 turns: bank conflicts"),
])  # fmt: skip
def test_the_picture(memory, stride, row, summary):
    with watch() as seen:
        strided_kernel[1, 32](np.zeros(32, np.float32), np.zeros(1024, np.float32), stride)
    picture = drawing.from_json(json.loads(json.dumps(drawing.to_json(seen.picture(memory)))))
    assert picture.summary() == summary and summary in picture.text()
    assert row is None or row in picture.text().splitlines()
    assert picture.figure().axes[0].get_title() == summary


def test_a_picture_needs_an_array_that_was_touched():
    with pytest.raises(KeyError, match="nothing was recorded"), watch() as seen:
        seen.picture("inp")


@pytest.mark.parametrize("text", ["# your lines:\n", "# end of your lines\n", "# your lines:\n# your lines:\n# end of your lines\n"])
def test_the_comments_around_the_learner_s_lines_must_match(text):
    with pytest.raises(ValueError, match="match|missing"):
        make_exercises.skeleton(text)


def test_a_changed_exercise_is_not_overwritten(tmp_path, monkeypatch, capsys):
    path = tmp_path / "00_double.py"
    monkeypatch.setattr(make_exercises, "exercise_file", lambda name: path)
    assert make_exercises.main(["00_double"]) == 0
    skeleton = path.read_text(encoding="utf-8")
    path.write_text("mine", encoding="utf-8")
    assert make_exercises.main(["00_double"]) == 0
    assert path.read_text(encoding="utf-8") == "mine" and "has been changed" in capsys.readouterr().out
    assert make_exercises.main(["00_double", "--again"]) == 0
    assert path.read_text(encoding="utf-8") == skeleton
    assert make_exercises.main(["double"]) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_file_of_hints_begins_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hints.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    assert hints.next_hint("a", ["one", "two"]) == ("one", 1)
    (file,) = tmp_path.rglob("hints.json")
    file.write_text(damage)
    assert hints.next_hint("a", ["one", "two"]) == ("one", 1)
    assert hints.next_hint("a", ["one", "two"]) == ("two", 0)
    assert hints.next_hint("a", ["one", "two"]) == ("", 0)


def test_the_command(capsys):
    assert cli.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == names()
    assert cli.main([]) == 2
    assert cli.main(["00_dubble"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == (
        "error: there is no exercise '00_dubble': --list prints all names; did you mean 00_double?"
    )


def test_a_notebook_can_be_checked_without_importing_numba():
    """Its process may be without the simulator, and must not wait for Numba to load."""
    code = "import sys; from tutorials.check import check, printing, running; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_the_arrays_of_every_exercise_differ_from_element_to_element():
    for name in names():
        if type(find(name)) is not Exercise:
            continue
        for size in find(name).sizes:
            for tensor in find(name).arrays(np.random.default_rng(1), **size).values():
                if tensor.access == "r" and tensor.kind == "real":
                    numbers = tensor.values[np.isfinite(tensor.values)]
                    assert numbers.size and len(np.unique(numbers)) == numbers.size
    assert written(3).values is None  # NaN before the call
