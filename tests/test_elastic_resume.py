"""A checkpoint of any number of processes, ours or llm.c's, at any ZeRO stage: any other number resumes it, and nothing is lost."""

import errno
import os
import shutil
import struct

import numpy as np
import pytest

from gpt2_numba.config import count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.data.loader import DataLoader, permute
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_values, gpu_available
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.parallel.shards import Shards
from gpt2_numba.training import finite, resume
from gpt2_numba.training.checkpoint import CheckpointFailed
from tests.thread_group import in_threads

SIZES = parse_descriptor("L=2,NH=1,C=16,T=4,V=37")  # equal parts for two processes, unequal ones for three and four
SHARDS = [np.random.default_rng(8).integers(0, SIZES.V, length).astype(np.uint16) for length in (500, 301)]
STEP = 7
on_device = pytest.mark.skipif(not gpu_available(), reason="there is no GPU, and the simulator is off")
DEVICES = [("cpu", "fp32"), pytest.param("gpu", "bf16", marks=on_device)]


def whole_arrays(precision, master_weights=True):
    """The arrays of a whole model: name -> values of all parameters."""
    rng, count = np.random.default_rng(6), count_parameters(SIZES)
    arrays = {name: rng.standard_normal(count).astype(np.float32) for name in ("m", "v", "params")}
    if precision == "bf16":
        if master_weights:
            arrays["master"] = arrays["params"]
        arrays["params"] = bfloat16_bits(arrays["params"])
    return arrays


def part_of_run(group, zero_stage, device, precision, B=1, **options):
    """(model, loader, run_state) of one process."""
    model = GPT2(SIZES, B, 4, Options(device, precision, zero_stage=zero_stage, **options), group)
    return model, DataLoader(SHARDS, B, 4, group.rank, group.ranks, shuffle=True), resume.RunState()


def files(directory):
    """Name -> bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def parts_of(array, model, name):
    """The parts that a process keeps of an array of all parameters."""
    parts = Shards(SIZES).parts() if name == "params" else model.sharing.state.parts()
    return np.concatenate([array[start : start + length] for _, start, length, _ in parts])


def write_by_several(directory, processes, zero_stage, device, precision, **options):
    """Write a checkpoint of several processes, each at its own position in the data. Returns the loaders, by rank."""

    def write(group):
        model, loader, run_state = part_of_run(group, zero_stage, device, precision, **options)
        for name, array in whole_arrays(precision, options.get("master_weights", True)).items():
            model.load_part(name, 0, parts_of(array, model, name))
        loader.skip(5)
        for _ in range(3):
            run_state.next_rounding_seed()
        run_state.loss_outliers.load([1.0, 2.5])
        resume.save(directory, STEP, model, loader.state(), run_state)
        return loader

    return in_threads(processes, write)


def resume_by_several(directory, processes, zero_stage, device, precision, **options):
    """Resume the checkpoint with several processes. Returns the (model, loader, run_state) of each, by rank."""

    def restore(group):
        whole = part_of_run(group, zero_stage, device, precision, **options)
        resume.restore(resume.open_newest(directory), *whole)
        return whole

    return in_threads(processes, restore)


def rounding_after(updates):
    """The states of the generator of rounding seeds after this many updates: now, and before the last update."""
    run_state = resume.RunState()
    for _ in range(updates):
        run_state.next_rounding_seed()
    return run_state.rounding.state, run_state.rounding_before_update


def assert_holds(model, expected):
    """Assert that the model has its parts of the arrays, bit for bit."""
    model.synchronize()
    for name, array in expected.items():
        found = np.array(model.raw(name), dtype=array.dtype)
        assert found.tobytes() == parts_of(array, model, name).tobytes(), f"{name} of rank {model.group.rank}"


@pytest.mark.parametrize(("device", "precision"), DEVICES)
@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_resumed_by_another_number_of_processes(tmp_path, before, after, device, precision):
    write_by_several(tmp_path, before, zero_stage=1, device=device, precision=precision)
    for zero_stage in (0, 1, 2):
        for model, loader, run_state in resume_by_several(tmp_path, after, zero_stage, device, precision):
            assert_holds(model, whole_arrays(precision))
            assert (run_state.rounding.state, run_state.rounding_before_update) == rounding_after(3)
            assert run_state.loss_outliers.values() == [1.0, 2.5]
            assert loader.current_sample > 0  # test_data_loader.py checks which one


@on_device
def test_resumed_in_another_precision(tmp_path):
    """Parameters in float32 come from the master weights; those in bfloat16 are rounded from float32."""
    write_by_several(tmp_path / "16", 3, zero_stage=1, device="gpu", precision="bf16")
    for model, *_ in resume_by_several(tmp_path / "16", 2, zero_stage=1, device="cpu", precision="fp32"):
        assert_holds(model, {"params": whole_arrays("bf16")["master"]})
    write_by_several(tmp_path / "32", 3, zero_stage=1, device="cpu", precision="fp32")
    for model, *_ in resume_by_several(tmp_path / "32", 2, zero_stage=1, device="gpu", precision="bf16"):
        assert_holds(model, whole_arrays("bf16"))


@pytest.mark.parametrize("processes", [2, 3])
def test_the_same_number_of_processes_has_the_same_batches(tmp_path, processes):
    loaders = write_by_several(tmp_path, processes, zero_stage=1, device="cpu", precision="fp32")
    for expected, (_, found, _) in zip(loaders, resume_by_several(tmp_path, processes, zero_stage=1, device="cpu", precision="fp32")):
        for _ in range(200):
            np.testing.assert_array_equal(found.next_batch(), expected.next_batch())


@pytest.mark.parametrize(("device", "precision"), DEVICES)
def test_each_stage_writes_the_same_files(tmp_path, device, precision):
    """Even with -z 0, where each process has everything, it writes only its part."""
    for stage in (0, 1, 2):
        write_by_several(tmp_path / str(stage), 3, zero_stage=stage, device=device, precision=precision)
    assert len(files(tmp_path / "0")) == 6
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "0")
    bytes_of_arrays = 4 * 3 * count_parameters(SIZES)
    states = sum(path.stat().st_size for path in (tmp_path / "0").glob("state_*"))
    assert bytes_of_arrays < states < bytes_of_arrays + 3 * 5000  # headers, orders of samples and generators


def test_there_and_back_again(tmp_path):
    """4 -> 2 -> 1 -> 4 processes: the last files hold the same parts as the first."""
    write_by_several(tmp_path / "0", 4, zero_stage=1, device="cpu", precision="fp32")
    for number, (processes, zero_stage) in enumerate([(2, 2), (1, 0), (4, 1)]):
        parts = resume_by_several(tmp_path / str(number), processes, zero_stage=zero_stage, device="cpu", precision="fp32")

        def write(group, directory=tmp_path / str(number + 1), parts=parts):
            model, loader, run_state = parts[group.rank]
            resume.save(directory, STEP, model, loader.state(), run_state)

        assert in_threads(processes, write) == [None] * processes
    first, last = files(tmp_path / "0"), files(tmp_path / "3")
    assert first.keys() == last.keys() and first["model_00000007.bin"] == last["model_00000007.bin"]
    for rank in range(4):
        end = 1024 + 4 * 3 * Shards(SIZES, rank, 4).local_count()  # what follows is the position in the data
        name = f"state_00000007_{rank:05d}.bin"
        assert first[name][1024:end] == last[name][1024:end]


@on_device
def test_a_checkpoint_without_master_weights(tmp_path):
    write_by_several(tmp_path, 2, zero_stage=1, device="gpu", precision="bf16", master_weights=False)
    for model, *_ in resume_by_several(tmp_path, 3, zero_stage=1, device="gpu", precision="bf16", master_weights=False):
        assert_holds(model, whole_arrays("bf16", master_weights=False))
    for error in resume_by_several(tmp_path, 3, zero_stage=1, device="gpu", precision="bf16"):
        assert isinstance(error, UserError) and "-w 0" in str(error)


@on_device
def test_several_processes_start_from_a_model_file(tmp_path):
    bits = whole_arrays("bf16")["params"]

    def start(group):
        model, loader, run_state = part_of_run(group, 1, "gpu", "bf16")
        resume.restore(resume.Checkpoint(0, SIZES, bits), model, loader, run_state)
        return model

    for model in in_threads(3, start):
        assert_holds(model, {"params": bits, "master": bfloat16_values(bits)})


def test_large_arrays_are_loaded_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "PIECE", 1000)
    write_by_several(tmp_path, 3, zero_stage=1, device="cpu", precision="fp32")
    lengths = []
    load_part = GPT2.load_part

    def record(model, which, start, values):
        lengths.append(len(values))
        load_part(model, which, start, values)

    monkeypatch.setattr(GPT2, "load_part", record)
    for model, *_ in resume_by_several(tmp_path, 2, zero_stage=0, device="cpu", precision="fp32"):
        assert_holds(model, whole_arrays("fp32"))
    assert max(lengths) == 1000


# ------------------------------------------------------------------------------------------------------- llm.c's files


def write_by_llmc(directory, processes, zero_stage, arrays):
    """Write a checkpoint as llm.c does, from the description of the format. arrays: name -> values of all parameters, in float32."""
    directory.mkdir()
    header = [20240326, 3, SIZES.max_T, SIZES.V, SIZES.L, SIZES.NH, SIZES.C, SIZES.Vp]
    content = struct.pack("<256i", *header, *[0] * 248) + arrays["params"].astype("<f4").tobytes()
    (directory / f"model_{STEP:08d}.bin").write_bytes(content)
    names, lengths = zip(*((name, np.prod(shape)) for name, shape in parameter_shapes(SIZES).items()))
    for rank in range(processes):
        generator = np.random.RandomState(42 + rank)
        permute(shard_order := np.arange(len(SHARDS)), generator)
        samples = (len(SHARDS[shard_order[0]]) - 1) // (4 * processes)
        permute(sample_order := np.arange(samples), generator)
        _, state_words, position, *_ = generator.get_state()
        head = bytearray(struct.pack("<256i", 20240527, 1, processes, rank, 1, 1, 0, 0, 0, 0, STEP, *[0] * 245))
        struct.pack_into("<2Q", head, 4 * 20, 1000 + rank, 2000 + rank)
        struct.pack_into("<2Q", head, 4 * 30, 0, 5)
        parts = [bytes(head)]
        for name in ("m", "v", "params"):
            for tensor_name, tensor in zip(names, np.split(arrays[name], np.cumsum(lengths)[:-1])):
                layers = 1 if tensor_name in ("wte", "wpe", "lnfw", "lnfb") else SIZES.L
                own = tensor.reshape(layers, processes, -1)[:, rank] if zero_stage else tensor
                parts.append(own.astype("<f4").tobytes())
        parts.append(struct.pack("<Q2i", 2, *shard_order) + struct.pack(f"<Q{samples}i", samples, *sample_order))
        parts.append(struct.pack("<QiI624I2I", 42 + rank, 625 - position, position, *map(int, state_words), 0, 0x9908B0DF))
        (directory / f"state_{STEP:08d}_{rank:05d}.bin").write_bytes(b"".join(parts))
    (directory / f"DONE_{STEP:08d}").touch()


@pytest.mark.parametrize("llmc_stage", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 2), (2, 1), (4, 4), (4, 3), (8, 2)])
def test_several_processes_resume_a_checkpoint_of_llmc(tmp_path, before, after, llmc_stage):
    arrays = whole_arrays("fp32")
    write_by_llmc(tmp_path / "llmc", before, llmc_stage, arrays)
    for stage in (0, 1):
        for model, loader, run_state in resume_by_several(tmp_path / "llmc", after, zero_stage=stage, device="cpu", precision="fp32"):
            assert_holds(model, arrays)
            assert (run_state.rounding.state, run_state.rounding_before_update) == (1000, 2000)
            if before == after:
                expected = DataLoader(SHARDS, 1, 4, loader.rank, before, shuffle=True)
                expected.skip(5)
                for _ in range(100):
                    np.testing.assert_array_equal(loader.next_batch(), expected.next_batch())


def test_our_files_are_llmcs(tmp_path):
    """If the parts are equal, a checkpoint of ours has the bytes of one of llm.c."""
    write_by_several(tmp_path / "ours", 2, zero_stage=0, device="cpu", precision="fp32")
    write_by_llmc(tmp_path / "llmc", 2, 1, whole_arrays("fp32"))
    for path in (tmp_path / "llmc").glob("state_*"):
        theirs, ours = bytearray(path.read_bytes()), bytearray((tmp_path / "ours" / path.name).read_bytes())
        theirs[80:96] = ours[80:96] = bytes(16)  # the generators of rounding seeds, which write_by_llmc makes up
        assert theirs == ours
    model = f"model_{STEP:08d}.bin"
    assert (tmp_path / "llmc" / model).read_bytes() == (tmp_path / "ours" / model).read_bytes()


# ----------------------------------------------------------------------------------------------------------- bad files


def overwrite(path, offset, value):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<i", value))


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def swap(directory):
    one, other = (directory / f"state_00000007_0000{rank}.bin" for rank in (1, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def mix_with_another_run(directory, processes, **options):
    """Replace rank 1's state file by that of another checkpoint."""
    write_by_several(directory / "other", processes, zero_stage=1, device="cpu", precision="fp32", **options)
    shutil.copy(directory / "other" / "state_00000007_00001.bin", directory)


def mix_with_whole_copy_of_llmc(directory):
    write_by_llmc(directory / "other", 3, 0, whole_arrays("fp32"))
    shutil.copy(directory / "other" / "state_00000007_00001.bin", directory)


def make_unshuffled(directory):
    content = (directory / "state_00000007_00001.bin").read_bytes()
    end = 1024 + 4 * 3 * Shards(SIZES, 1, 3).local_count()
    (directory / "state_00000007_00001.bin").write_bytes(content[:20] + struct.pack("<i", 0) + content[24:end])


@pytest.mark.parametrize(("spoil", "reason"), [
    (swap, "says step 7 and rank 1, its header step 7 and rank 2"),
    (lambda d: overwrite(d / "state_00000007_00001.bin", 40, 6), "says step 7 and rank 1, its header step 6 and rank 1"),
    (lambda d: overwrite(d / "state_00000007_00001.bin", 8, 4), "another model"),  # with 4 processes it would have smaller parts
    (lambda d: overwrite(d / "state_00000007_00001.bin", 24, 0), "another model"),
    (lambda d: (d / "state_00000007_00002.bin").unlink(), "state_00000007_00002.bin: a checkpoint must have all its files"),
    (lambda d: mix_with_another_run(d, 2), "state files of a checkpoint must be from one run, but this one is one of 2 processes"),
    (lambda d: mix_with_another_run(d, 4), "one of 4 processes"),
    (lambda d: truncate(d / "state_00000007_00001.bin"), "cut off"),
    (mix_with_whole_copy_of_llmc, f"one of 3 processes, of {count_parameters(SIZES)} parameters all of them"),
    (make_unshuffled, "the data not shuffled"),
])  # fmt: skip
def test_states_that_do_not_go_together(tmp_path, capsys, spoil, reason):
    """Without checksums, as in a checkpoint of llm.c, the headers must show it."""
    write_by_several(tmp_path, 3, zero_stage=1, device="cpu", precision="fp32")
    (tmp_path / "DONE_00000007").write_bytes(b"")
    spoil(tmp_path)
    with pytest.raises(UserError) as raised:
        resume.open_newest(tmp_path)
    message = str(raised.value)
    assert reason in message and "state_00000007_0000" in message and "\n" not in message


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("rank", [0, 2])
def test_damage_that_one_process_finds_is_reported_by_all(tmp_path, monkeypatch, capsys, rank, checksums):
    """Each of three processes checks a third: blocks with checksums; without, whether the numbers are finite."""
    monkeypatch.setattr(finite, "PIECE", 1000)
    write_by_several(tmp_path, 3, zero_stage=1, device="cpu", precision="fp32")
    if not checksums:
        (tmp_path / "DONE_00000007").write_bytes(b"")
    name = f"state_00000007_{rank:05d}.bin"
    overwrite(tmp_path / name, 1024 + 4 * 1500, 0x7F800000)
    errors = in_threads(3, lambda group: resume.open_newest(tmp_path, group))
    (message,) = {str(error) for error in errors}
    assert isinstance(errors[0], UserError) and name in message and "\n" not in message
    assert ("rank" in message) and ("block 0 has another" if checksums else "AdamW's m must be finite numbers, and there is inf") in message
    assert capsys.readouterr().err.count("warning") == 1


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_numbers_that_are_not_finite_in_one_process_are_not_saved(tmp_path, zero_stage):
    def write(group):
        model, loader, run_state = part_of_run(group, zero_stage, "cpu", "fp32")
        if zero_stage == 0 or group.rank == 1:  # with -z 0 all have the same numbers, and rank 1 writes this one
            local = next(local for local, start, *_, segment in model.sharing.state.parts() if segment.name == "fcw")
            model.raw("v")[local + (0 if zero_stage else 600)] = np.nan
        resume.save(tmp_path, STEP, model, loader.state(), run_state)

    errors = in_threads(3, write)
    (message,) = {str(error) for error in errors}
    assert isinstance(errors[0], CheckpointFailed) and "rank 1 on host" in message and "AdamW's v must be finite" in message
    assert "nan in fcw of block 0 at [" in message and list(tmp_path.iterdir()) == []


def test_a_full_disk_at_one_process_fails_at_all(tmp_path, monkeypatch):
    write = resume.write_state_file

    def fill_up(path, state, kept):
        if state.shards.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, state, kept)

    monkeypatch.setattr(resume, "write_state_file", fill_up)
    errors = write_by_several(tmp_path, 3, zero_stage=1, device="cpu", precision="fp32")
    assert len({str(error) for error in errors}) == 1
    assert isinstance(errors[0], CheckpointFailed) and "rank 1 on host" in str(errors[0]) and "No space left" in str(errors[0])
    assert list(tmp_path.iterdir()) == []
