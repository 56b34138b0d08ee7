"""docs/primer.md: its code runs as it is printed, its output is what it says, and its block_sum is the one in the package."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest

from gpt2_numba.gpu import block_sum
from gpt2_numba.gpu.backend import gpu_available

PAGE = Path(__file__).resolve().parents[1] / "docs" / "primer.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.skipif(not gpu_available(), reason="kernels cannot run: there is no GPU, and the simulator is off")
def test_the_code_prints_what_the_page_says(tmp_path):
    namespace, printed = {}, []
    for number, (language, text) in enumerate(BLOCKS):
        if language == "python":
            file = tmp_path / f"block_{number}.py"  # Numba reads the source of a kernel from a file
            file.write_text(text, encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(text, str(file), "exec"), namespace)
            printed.append(output.getvalue())
        elif language == "text":
            assert printed[-1] == text
    assert len(printed) == [language for language, _ in BLOCKS].count("text") == 4


def test_block_sum_is_the_package_s():
    (shown,) = [text for language, text in BLOCKS if language == "py"]
    assert shown in inspect.getsource(block_sum)
