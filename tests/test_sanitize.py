"""dev.bench.sanitize with a program in the sanitizer's place: what it says becomes the verdict and the exit code."""

import pytest

from dev.bench import sanitize
from gpt2_numba.errors import UserError
from gpt2_numba.training.settings import parse_settings


def fake(directory, script):
    path = directory / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def trainings_that_succeed(monkeypatch):
    monkeypatch.setattr(sanitize, "training", lambda engine, log_dir: ["true", engine])


@pytest.mark.parametrize("script, code, verdict", [
    ('echo "some line"; echo "========= ERROR SUMMARY: 0 errors"', 0, "ok: ERROR SUMMARY: 0 errors"),
    ('echo "= Invalid __global__ write"; echo "= ERROR SUMMARY: 1 error"; exit 77', 1, "FAILED, exit code 77: ERROR SUMMARY: 1 error"),
    ("exit 0", 1, "FAILED, exit code 0: no summary"),
])  # fmt: skip
def test_the_verdict(script, code, verdict, tmp_path, capsys):
    out = tmp_path / "out.txt"
    assert sanitize.run_all(["mma", "plain"], ["memcheck"], fake(tmp_path, script), 2, out) == code
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all(line.endswith(verdict) for line in printed)
    assert out.read_text().startswith("## mma, memcheck: ") and ("Invalid" in script) == ("Invalid" in out.read_text())


def test_a_training_that_fails_by_itself_is_not_sanitized(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "training", lambda engine, log_dir: ["false"])
    assert sanitize.run_all(["mma"], ["memcheck"], "true", 1, None) == 1
    assert capsys.readouterr().out.startswith("mma      fails without the sanitizer")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(sanitize, "real_gpu", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        sanitize.run([])


@pytest.mark.parametrize("engine", sanitize.ENGINES)
def test_the_flags_of_every_engine_exist(engine):
    settings = parse_settings([*sanitize.ENGINES[engine].split(), *sanitize.COMMON])
    assert settings.total_batch_tokens == 2 * settings.batch_size * settings.sequence_length
