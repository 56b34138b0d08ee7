"""Ranks that disagree are named, and all raise the same error; whatever decides the bits of a run is compared."""

from dataclasses import replace

import pytest

from gpt2_numba.errors import SharedError, UserError
from gpt2_numba.parallel.agreement import check_agreement, facts_of_files, facts_of_settings, facts_of_versions, together
from gpt2_numba.training.settings import SHARD_DEFAULTS
from tests.mpi import run_together
from tests.thread_group import in_threads


def on_ranks(hosts, work):
    """Call work(group) at a rank for each of the hosts. Returns what each call returned or raised, by rank."""

    def at_host(group):
        group.host = hosts[group.rank]
        return work(group)

    return in_threads(len(hosts), at_host)


def complaint(hosts, work):
    """The one SharedError that all ranks raise, as text."""
    errors = on_ranks(hosts, work)
    assert all(isinstance(error, SharedError) for error in errors), errors
    (text,) = {str(error) for error in errors}
    return text


def disagreement(hosts, facts):
    """The differences reported for facts, a list by rank, without the rule before and the advice after them."""
    text = complaint(hosts, lambda group: check_agreement(group, facts[group.rank]))
    rule, differences, advice = text.replace("differ in: ", "\n").replace(". Give", "\n").split("\n")
    assert "same settings" in rule and "same command" in advice
    return differences


def test_ranks_that_agree_continue():
    facts = {"model (-e)": "d12", "seed (--seed)": None}
    assert on_ranks(["a"] * 3, lambda group: check_agreement(group, facts)) == [None] * 3
    assert on_ranks(["a"], lambda group: check_agreement(group, facts)) == [None]


def test_order_of_facts_does_not_matter():
    facts = [{"one": 1, "two": 2}, {"two": 2, "one": 1}]
    assert on_ranks(["a", "a"], lambda group: check_agreement(group, facts[group.rank])) == [None, None]


def test_settings_that_differ():
    settings = [replace(SHARD_DEFAULTS, batch_size=8 if rank == 1 else 4, rank=rank) for rank in range(8)]
    assert disagreement(["a17"] * 8, [facts_of_settings(s) for s in settings]) == "batch_size (-b): 4 on ranks 0, 2-7, but 8 on rank 1"


def test_settings_that_have_no_short_flag_or_are_not_given():
    settings = [replace(SHARD_DEFAULTS, precision="bf16"), replace(SHARD_DEFAULTS, log_dir="log")]
    assert disagreement(["a17"] * 2, [facts_of_settings(s) for s in settings]) == (
        "log_dir (-o): none on rank 0, but log on rank 1; precision (--precision): bf16 on rank 0, but auto on rank 1"
    )


def test_every_setting_but_the_rank_is_a_fact():
    facts = facts_of_settings(SHARD_DEFAULTS)
    assert facts == facts_of_settings(replace(SHARD_DEFAULTS, rank=5))
    assert facts != facts_of_settings(replace(SHARD_DEFAULTS, zero_stage=1)) and "zero_stage (-z)" in facts


def test_hosts_that_differ():
    facts = [{"version of numba": version} for version in ("0.61", "0.61", "0.62", "0.62")]
    assert disagreement(["a17", "a17", "a18", "a18"], facts) == "version of numba: 0.61 on host a17, but 0.62 on host a18"


def test_one_rank_of_a_host_among_several():
    facts = [{"batch_size (-b)": value} for value in (4, 4, 4, 8)]
    assert disagreement(["a17", "a17", "a18", "a18"], facts) == "batch_size (-b): 4 on ranks 0-2, but 8 on rank 3 (host a18)"


def test_facts_that_are_not_everywhere():
    assert disagreement(["a", "a"], [{"train_1.bin": "9 bytes"}, {}]) == "train_1.bin: 9 bytes on rank 0, but none on rank 1"


def test_only_some_of_many_differences_are_reported():
    facts = [{f"fact {i}": rank for i in range(9)} for rank in range(2)]
    assert disagreement(["a", "a"], facts).endswith("fact 4: 0 on rank 0, but 1 on rank 1; 4 more")
    facts = [{"value": rank} for rank in range(9)]
    assert disagreement(["a"] * 9, facts) == "value: " + ", but ".join(f"{rank} on rank {rank}" for rank in range(5)) + ", but 4 more"


# ------------------------------------------------------------------------------------------------------ together


def test_together_returns_the_result_of_each():
    assert on_ranks(["a"] * 3, lambda group: together(group, lambda: 10 * group.rank)) == [0, 10, 20]


def fail_at(messages):
    """Work that raises a UserError at the ranks of `messages`, {rank: text}."""

    def work(group):
        def part():
            if group.rank in messages:
                raise UserError(messages[group.rank])

        return together(group, part)

    return work


def test_together_says_which_ranks_have_a_mistake():
    assert complaint(["a17", "a17", "a18"], fail_at({2: "no file x"})) == "host a18: no file x"
    assert complaint(["a17"] * 4, fail_at({1: "no file x", 3: "no file x"})) == "ranks 1, 3: no file x"
    assert complaint(["a17"] * 3, fail_at({1: "no file x", 2: "no file y"})) == "rank 1: no file x; rank 2: no file y"


def test_together_reports_a_mistake_of_all_ranks_once():
    assert complaint(["a17", "a18"], fail_at({0: "no file x", 1: "no file x"})) == "no file x"
    assert complaint(["a17"], fail_at({0: "no file x"})) == "no file x"


def test_together_leaves_other_errors_alone():
    def work():
        raise ZeroDivisionError

    assert isinstance(on_ranks(["a"], lambda group: together(group, work))[0], ZeroDivisionError)


# --------------------------------------------------------------------------------------------------------- facts


def test_versions():
    facts = facts_of_versions("cpu")
    assert facts == facts_of_versions("cpu")
    assert facts["version of Python"].startswith("3.") and facts["version of numpy"] and len(facts["gpt2_numba's source"]) == 12
    assert "GPU" not in facts and "version of numba-cuda" not in facts


def test_versions_with_a_gpu(monkeypatch):
    monkeypatch.setattr("gpt2_numba.gpu.backend.device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("gpt2_numba.gpu.backend.real_gpu", lambda: False)  # NCCL need not be installed
    facts = facts_of_versions("gpu")
    assert facts["GPU"] == "NVIDIA H200" and "version of numba-cuda" in facts


def test_a_changed_source_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr("gpt2_numba.parallel.agreement.PACKAGE_ROOT", tmp_path)
    digests = set()
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 2"), ("layers/b.py", "x = 2")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        digests.add(facts_of_versions("cpu")["gpt2_numba's source"])
        path.unlink()
    assert len(digests) == 4


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 17) - 1, 1 << 18])
def test_files_are_identified_by_size_and_ends(tmp_path, size):
    path = tmp_path / "shard.bin"
    contents = bytearray(size)
    path.write_bytes(contents)
    (before,) = facts_of_files([path]).items()
    assert before[0] == str(path) and before[1].startswith(f"{size:,} bytes (")
    for position in {0, size - 1} if size else ():
        altered = contents.copy()
        altered[position] = 1
        path.write_bytes(altered)
        assert facts_of_files([path])[str(path)] != before[1]
    path.write_bytes(contents + b"\0")
    assert facts_of_files([path])[str(path)] != before[1]


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="shard.bin must be a file that can be read, and is not: No such file"):
        facts_of_files([tmp_path / "shard.bin"])


# ---------------------------------------------------------------------------------------------------------- with MPI

PROGRAM = """
import sys
from dataclasses import replace
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.agreement import check_agreement, facts_of_settings, facts_of_versions, together
from gpt2_numba.parallel.start import join
from gpt2_numba.training.settings import SHARD_DEFAULTS

group = join(SHARD_DEFAULTS, "cpu")
check_agreement(group, facts_of_settings(SHARD_DEFAULTS) | facts_of_versions("cpu"))
settings = replace(SHARD_DEFAULTS, batch_size=8 if group.rank == 2 else 4)
def missing():
    if group.rank == 1:
        raise UserError("no file x")
for step in (lambda: check_agreement(group, facts_of_settings(settings)), lambda: together(group, missing)):
    try:
        step()
    except UserError as error:
        sys.stdout.write(f"{group.rank}: {error}\\n")
group.close()
"""


def test_real_processes():
    done = run_together(4, ["-c", PROGRAM])
    for rank in range(4):
        assert f"{rank}: rank 1: no file x\n" in done.stdout
        assert f"{rank}: all processes must run with the same" in done.stdout
    assert done.stdout.count("batch_size (-b): 4 on ranks 0-1, 3, but 8 on rank 2.") == 4
