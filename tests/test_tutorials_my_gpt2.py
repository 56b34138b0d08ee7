"""The end of the course: which exercises are solved, one file made of them, and a GPT-2 that is trained with it."""

import textwrap
from collections import Counter
from types import SimpleNamespace

import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.kernel_sets import FUNCTIONS, load_own_functions
from gpt2_numba.layer_checks import LAYERS, Sizes, check_kernel, layer_functions
from tutorials import collecting, my_gpt2
from tutorials.check.verdict import Verdict
from tutorials.collecting import LAYERS as MY_LAYERS
from tutorials.collecting import NOT_BEGUN, SOLVED, WRONG, Attempt, attempts, chosen, whole_layers
from tutorials.make_exercises import HERE, skeleton, solution_file
from tutorials.merging import Source, merge

SMALL = Sizes(B=2, T=3, C=8, NH=2, V=11, Vp=13, OC=7)


# ------------------------------------------------------------------------------------------------------------------ merging


def merged(*texts, reserved=()):
    """The text of a file merged from 1_first, 2_second, 3_third, and what it defines. Their functions are first, second, third."""
    names = ("first", "second", "third")[: len(texts)]
    text = merge(
        [Source(f"{i}_{name}", textwrap.dedent(text), name) for i, (name, text) in enumerate(zip(names, texts))], "Together.", reserved
    )
    module = {}
    exec(compile(text, "merged", "exec"), module)
    return text, SimpleNamespace(**module)


def test_imports_are_merged():
    text, module = merged(
        "import math\nimport numpy as np\nfrom numba import cuda\n\ndef first(): return math.floor(np.float32(1.5))",
        "import numpy as np\nfrom numba import cuda, float32\nimport os.path\n\ndef second(): return os.path.join('a', 'b')",
        "from gpt2_numba.integers import ceil_div\nimport os\n\ndef third(): return ceil_div(5, 2), os.sep",
    )
    expected = "import math\nimport os\nimport os.path\n\nimport numpy as np\nfrom numba import cuda, float32\n\nfrom gpt2_numba.integers import ceil_div\n\n\n#"
    assert text.startswith('"""Together.\n"""\n\n' + expected)
    assert (module.first(), module.second(), module.third()) == (1, "a/b", (3, "/"))


def test_equal_constants_and_helpers_are_there_once():
    part = "THREADS = 32\n\ndef double(x):\n    return THREADS * x\n\ndef {}():\n    return double(1)\n"
    text, module = merged(part.format("first"), part.format("second").replace("32", "32  # the same"))
    assert (text.count("THREADS = 32"), text.count("def double"), module.first(), module.second()) == (1, 1, 32, 32)


def test_different_constants_and_what_is_made_of_them_get_names_of_their_own():
    part = "THREADS = {}\n\ndef double(x):\n    return THREADS * x\n\ndef {}():\n    return double(1)\n"
    text, module = merged(part.format(32, "first"), part.format(64, "second"), part.format(64, "third"))
    assert (module.first(), module.second(), module.third()) == (32, 64, 64)
    assert "def double_second(x):\n    return THREADS_SECOND * x\n\ndef second():\n    return double_second(1)\n" in text
    assert text.count("64") == 1  # the third one shares the second one's


def test_a_different_helper_gets_a_name_of_its_own():
    text, module = merged("def help(): return 1\ndef first(): return help()", "def help(): return 2\ndef second(): return help()")
    assert (module.first(), module.second()) == (1, 2) and "def help_second(): return 2" in text


def test_a_name_that_is_not_where_it_is_sought():
    _, module = merged("def help(): return 1\ndef first(): return help()", "def \\\n help(): return 2\ndef second(): return help()")
    assert (module.first(), module.second()) == (1, 2)


def test_an_import_and_a_constant_of_one_name():
    text, module = merged(
        "from math import pi\ndef first(): return pi", "pi = 3\ndef second(): return pi", "from math import e as pi\ndef third(): return pi"
    )
    assert (round(module.first(), 2), module.second(), round(module.third(), 2)) == (3.14, 3, 2.72)
    assert "from math import e as pi_third, pi\n" in text


def test_only_the_module_s_name_is_renamed():
    second = '''
        WIDTH, unused = 2, 0  # WIDTH: this comment remains

        def local():
            """WIDTH is a word here."""
            WIDTH = 5
            return [WIDTH for _ in range(1)], (lambda: WIDTH)()

        def parameter(WIDTH=WIDTH):
            return WIDTH

        class Holder:
            WIDTH = 7
            def read(self):
                return WIDTH

        def comprehension():
            return [WIDTH for WIDTH in range(WIDTH)], sum(WIDTH for _ in "ab"), (lambda WIDTH: WIDTH)(9)

        def walrus():
            return [WIDTH := 6 for _ in "a"], WIDTH

        def texts(**named):
            return f"ä {WIDTH:d} {named['WIDTH']}" "WIDTH"

        def second():
            ä = "ä", WIDTH   # layout   remains
            return local(), parameter(), parameter(WIDTH=3), Holder.WIDTH, Holder().read(), comprehension(), walrus(), texts(WIDTH=4), ä
    '''
    text, module = merged("WIDTH = 1\ndef first(): return WIDTH", second)
    assert module.first() == 1
    assert module.second() == (([5], 5), 2, 3, 7, 2, ([0, 1], 4, 9), ([6], 6), "ä 2 4WIDTH", ("ä", 2))
    assert "WIDTH := 6" in text
    assert '    ä = "ä", WIDTH_SECOND   # layout   remains\n' in text and '"""WIDTH is a word here."""' in text
    assert "WIDTH_SECOND, unused = 2, 0  # WIDTH: this comment remains" in text


def test_a_name_in_a_text_of_several_lines():
    second = "A = 2\ndef second():\n    return f'''ä\n{A} {A!r:>{A}}\n''' 'A' f'{A}'"
    _, module = merged("A = 1\ndef first(): return A", second)
    assert module.second() == "ä\n2  2\nA2"


def test_what_functions_assign_is_never_shared():
    part = "COUNT = 0\n\ndef count():\n    global COUNT\n    COUNT += 1\n    return COUNT\n\ndef {}():\n    return count()\n"
    _, module = merged(part.format("first"), part.format("second"))
    assert (module.first(), module.first(), module.second()) == (1, 2, 1)


@pytest.mark.parametrize("definition", ["seen = []", "SEEN = []", "seen = dict()"])
def test_what_may_change_is_never_shared(definition):
    name = definition.partition(" ")[0]
    _, module = merged(f"{definition}\ndef first(): return {name}", f"{definition}\ndef second(): return {name}")
    assert module.first() == module.second() and module.first() is not module.second()


def test_a_line_of_several_constants_keeps_those_that_are_new():
    text, module = merged("ZERO = 0\ndef first(): return ZERO", "ZERO, ONE, TWO = 0, 1, 2\ndef second(): return ZERO, ONE, TWO")
    assert module.second() == (0, 1, 2) and "\nONE, TWO = 1, 2\n" in text


def test_statements_on_one_line():
    _, module = merged(
        "import math; A = 1; B = (2,\n3 +\n4)\ndef first(): return A, B, math.inf", "A = 2; B = (2, 3 + 4)\ndef second(): return A, B"
    )
    assert (module.first(), module.second()) == ((1, (2, 7), float("inf")), (2, (2, 7)))


def test_a_builtin_remains_what_it_is_for_the_others():
    source = "def sum(x): return 'mine'\ndef total(x): return sum(x)\ndef {}(): return total([1, 2])"
    text, module = merged(source.format("first"), "def total(x): return sum(x)\ndef second(): return total([1, 2])", source.format("third"))
    assert (module.first(), module.second(), module.third()) == ("mine", 3, "mine")
    assert text.count("return 'mine'") == 1


def test_only_a_function_s_own_source_may_define_it():
    _, module = merged(
        "def second(): return 'a helper'\ndef first(): return second()", "def second(): return 'the function'", reserved=["first", "second"]
    )
    assert (module.first(), module.second()) == ("a helper", "the function")


def test_a_new_name_is_nowhere_else():
    _, module = merged("A = 1\ndef first(): return A", "A, A_SECOND = 2, 3\ndef second(): return A, A_SECOND")
    assert (module.first(), module.second()) == (1, (2, 3))


def test_comments_and_decorators_stay_with_their_definition():
    text, _ = merged(
        "A = 1\ndef first(): pass", "# dropped with it\nA = 1\n\n# kept\n@staticmethod\n# inside\ndef second(): pass\n# at the end\n"
    )
    assert "dropped" not in text and "# kept\n@staticmethod\n# inside\ndef second(): pass\n# at the end\n" in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("def second(:", "1_second: this is not Python"),
        ("from math import *", "1_second: 'from math import *' cannot be merged"),
        ("try:\n    import json as A\nexcept ImportError as error:\n    A = None", "1_second: another exercise has another A"),
        ("import os.path\nos = os", "1_second: another exercise has another os"),
    ],
)
def test_what_cannot_be_merged(text, message):
    with pytest.raises(UserError) as raised:
        merged("A, os = 1, 2\ndef first(): return A", text)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.skipif(not SIMULATING, reason="the sizes are for the simulator")
def test_all_solutions_together_are_right(tmp_path):
    solved = chosen(attempts(HERE / "solutions", check=False))
    assert len(solved) >= 4
    my_gpt2.write_kernels(tmp_path / "all.py", solved)
    own = load_own_functions(tmp_path / "all.py")
    assert set(own) == set(solved)
    trained = [layer for layer in LAYERS if set(layer_functions(layer)) <= set(FUNCTIONS)]
    rows = [row for layer in trained for row in check_kernel(layer, "fp32", SMALL, SimpleNamespace(**(FUNCTIONS | own)))]
    assert [row for row in rows if not row.ok] == []
    text = (tmp_path / "all.py").read_text(encoding="utf-8")
    assert (
        text.count("\nimport numpy as np\n") == 1
        and max(Counter(line for line in text.splitlines() if " = np.float32(" in line and line[0] != " ").values()) == 1
    )


# ---------------------------------------------------------------------------------------------------------------- collecting


def test_layers_are_in_the_order_of_a_training_step():
    assert list(MY_LAYERS) == ["encoder", "layernorm", "matmul", "attention", "residual", "gelu", "classifier", "global_norm", "adamw"]
    assert sorted(function for functions in MY_LAYERS.values() for function in functions) == sorted(FUNCTIONS)


def test_exercises_that_are_gpt_2_s_functions_are_found():
    found = collecting.layer_exercises()
    assert found["03_layernorm_forward"] == "layernorm_forward" and list(found) == sorted(found, key=lambda name: name[:2])
    assert "03_layernorm_backward_numpy" not in found and "01_find_the_fault" not in found  # which run no kernel


def put(directory, *names, changes=("", "")):
    for name in names:
        text = solution_file(name).read_text(encoding="utf-8")
        assert changes[0] in text
        (directory / f"{name}.py").write_text(text.replace(*changes), encoding="utf-8")


def states(found):
    return {attempt.name: attempt.state for attempt in found if attempt.state != NOT_BEGUN}


def test_what_has_not_been_begun_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "run", None)
    given = skeleton(solution_file("05_gelu_forward").read_text(encoding="utf-8"))
    (tmp_path / "05_gelu_forward.py").write_text(given, encoding="utf-8")
    assert states(attempts(tmp_path)) == {}


@pytest.mark.parametrize("failure, state", [("", SOLVED), ("compiler", SOLVED), ("value", WRONG), ("time", WRONG), ("float64", WRONG)])
def test_the_check_decides(failure, state, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "run", lambda name, path, seconds: Verdict(name, path, failure, "wrong\n  here", size="N = 1"))
    put(tmp_path, "05_gelu_forward")
    reported = []
    found = attempts(tmp_path, report=reported.append)
    assert states(found) == {"05_gelu_forward": state}
    assert [attempt.message for attempt in reported] == ["with N = 1: wrong here" if state == WRONG else ""]


@pytest.mark.parametrize(
    "text, message",
    [
        ("from gpt2_numba.layers.gelu import gelu_forward\n", "does not define gelu_forward"),
        ("def gelu_forward(:\n", "cannot be read"),
    ],
)
def test_a_function_must_be_the_learner_s_own(text, message, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "run", lambda name, path, seconds: Verdict(name, path, ""))
    (tmp_path / "05_gelu_forward.py").write_text(text, encoding="utf-8")
    for check in (True, False):
        found = attempts(tmp_path, check)
        assert states(found) == {"05_gelu_forward": WRONG}
        assert any(message in attempt.message for attempt in found)


def test_the_last_one_that_is_solved_counts(tmp_path):
    found = [
        Attempt(name, "matmul_forward", tmp_path, state) for name, state in (("1", SOLVED), ("2", SOLVED), ("3", WRONG), ("4", NOT_BEGUN))
    ]
    assert chosen(found)["matmul_forward"].name == "2"
    assert whole_layers(chosen(found)) == []
    assert whole_layers({"matmul_forward": found[0], "matmul_backward": found[0]}) == ["matmul"]


def test_the_table(tmp_path):
    def attempt(name, state):
        return Attempt(name, name[3:], tmp_path, state)

    found = [attempt("05_gelu_forward", SOLVED), attempt("05_gelu_backward", WRONG), attempt("03_layernorm_forward", NOT_BEGUN)]
    found += [attempt("07_residual_forward", SOLVED), attempt("07_residual_backward", SOLVED)]
    lines = [" ".join(line.split()) for line in my_gpt2.table(found).splitlines()]
    assert "gelu partly yours gelu_forward 05_gelu_forward" in lines
    assert "gelu_backward not right yet: python -m tutorials.check 05_gelu_backward" in lines
    assert "layernorm the package's layernorm_forward not begun: python -m tutorials.check 03_layernorm_forward" in lines
    assert "residual yours residual_forward 07_residual_forward" in lines
    assert "matmul_backward there is no exercise for it yet" in lines
    assert my_gpt2.conclusion(chosen(found)).endswith("\ntrained by your kernels: 1 of 9") and "gelu (gelu_backward)" in my_gpt2.conclusion(
        chosen(found)
    )
    assert my_gpt2.conclusion(dict.fromkeys(FUNCTIONS)) == "trained by your kernels: 9 of 9"


# --------------------------------------------------------------------------------------------------------------- the program


def test_nothing_is_solved_yet(tmp_path, capsys):
    assert my_gpt2.main(["--exercises", str(tmp_path), "--output", str(tmp_path / "k.py")]) == 0
    assert "Begin with chapter 02" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--steps", "many"], "argument --steps: invalid int value"),
        (["--output", "kernels.txt"], "--output must be a Python file"),
        (["--exercises", "no such directory"], "--exercises must be a directory"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_wrong_command_line_is_one_line(flags, message, capsys):
    assert my_gpt2.main(flags) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1 and printed.out == ""


def test_another_file_is_not_overwritten(tmp_path, capsys):
    put(tmp_path, "07_residual_forward")
    before = (tmp_path / "07_residual_forward.py").read_bytes()
    flags = ["--exercises", str(tmp_path), "--no-check", "--output", str(tmp_path / "07_residual_forward.py")]
    assert my_gpt2.main(flags) == 2
    assert "has not been written by this program" in capsys.readouterr().err
    assert (tmp_path / "07_residual_forward.py").read_bytes() == before
    assert my_gpt2.main([*flags[:-1], str(tmp_path / "none" / "k.py")]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_the_list_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "07_residual_forward")
    assert my_gpt2.main(["--exercises", ".", "--list", "--no-check", "--output", "k.py"]) == 0
    assert "07_residual_forward" in capsys.readouterr().out and not (tmp_path / "k.py").exists()


def test_a_run_on_a_gpu_is_the_trainer_s_own(tmp_path, monkeypatch):
    assert my_gpt2.training_flags(None, simulating=False) == ["--max-steps", "300", "--warmup-steps", "30"]
    assert my_gpt2.training_flags(20, simulating=False) == ["--max-steps", "20", "--warmup-steps", "2"]
    monkeypatch.chdir(tmp_path)
    assert my_gpt2.free_directory() == "log_my_gpt2"
    (tmp_path / "log_my_gpt2").mkdir()
    assert my_gpt2.free_directory() == "log_my_gpt2.1"


@pytest.mark.skipif(not SIMULATING, reason="trains in Numba's simulator")
def test_gpt_2_is_trained_with_what_is_right(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(my_gpt2, "SIMULATOR_SAMPLE", 2)
    put(tmp_path, "07_residual_forward", "07_residual_backward", "08_accumulate_mean")
    put(tmp_path, "05_gelu_forward", changes=("0.044715", "0.44715"))
    assert my_gpt2.main(["--exercises", ".", "--output", "mine.py", "--steps", "2"]) == 0
    out = capfd.readouterr().out
    assert "07_residual_forward              pass\n" in out
    assert "05_gelu_forward                  not yet: with N = " in out
    assert "not right yet: python -m tutorials.check 05_gelu_forward" in out
    assert "wrote mine.py: 3 of 18 functions are yours" in out
    assert "checking residual_forward, accumulate_mean, residual_backward of plain, mine.py:" in out
    assert "step    2/2 | loss " in out and "generating:\n---\n" in out
    loss = [line for line in out.splitlines() if line.startswith("loss: ")][0].split()
    assert float(loss[1]) > float(loss[5]) + 0.3 and loss[-1] == "(log_my_gpt2/loss.png)"
    assert out.endswith("\ntrained by your kernels: 1 of 9\n")
    assert (tmp_path / "log_my_gpt2" / "loss.png").stat().st_size > 0


@pytest.mark.skipif(not SIMULATING, reason="trains in Numba's simulator")
def test_without_the_check_the_trainer_refuses_what_is_wrong(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "05_gelu_forward", changes=("0.044715", "0.44715"))
    assert my_gpt2.main(["--exercises", ".", "--output", "mine.py", "--no-check"]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("error: --kernels plain, mine.py: gelu forward: out") and printed.err.count("\n") == 1
    assert "trained by your kernels" not in printed.out
