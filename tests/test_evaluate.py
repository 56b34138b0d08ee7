"""Evaluating: windows, batches by length, answers, and the command. The oracle takes one token, or one row, at a time."""

import json
import math

import numpy as np
import pytest

from gpt2_numba import evaluate
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import Example, Score, read_examples, write_examples
from gpt2_numba.data.evaluation.rows_by_length import LENGTH_STEP, batches_by_length, losses_of_batches, padded_share
from gpt2_numba.data.evaluation.text_windows import ENOUGH_WINDOWS, TextLosses, estimate, token_bytes, windows_of_text
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.data.tokenizer_record import record_tokenizer
from gpt2_numba.data.tokenizers import byte_encoding
from gpt2_numba.evaluation_model import EvaluationModel
from gpt2_numba.gpu.backend import copy_to_host
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training.evaluation import answer_questions
from gpt2_numba.training.model_file import write_model_file
from gpt2_numba.training.stop_request import StopRequest

CONFIG = parse_descriptor("L=2,NH=2,C=16,T=64,V=257")
END_OF_TEXT = 256


@pytest.fixture(scope="module")
def weights():
    """Weights with which losses differ much from token to token."""
    return [(name, layer, 4 * values) for name, layer, values in draw_initial_weights(CONFIG, parameter_shapes(CONFIG), 3)]


@pytest.fixture(scope="module")
def model_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    model = GPT2(CONFIG, 1, 8)
    model.load_pieces(weights)
    write_model_file(path, CONFIG, model.raw("params"))
    return path


@pytest.fixture(scope="module")
def model(weights):
    model = EvaluationModel(CONFIG, 64, Options(), tokens=512)
    model.load_pieces(weights)
    return model


def loss_of_last(model, tokens):
    """The loss of the last token, predicted from all before it, from the logits, in float64."""
    model.forward(np.array([tokens[:-1]], np.int32))
    logits = model.logits_to_host()[0, -1].astype(np.float64)
    return math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[-1]]


def random_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, 257, count).astype(np.uint16)


# ------------------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    "count, T, stride", [(n, T, s) for n in (1, 2, 4, 5, 6, 9, 23) for T in (1, 4, 7) for s in (None, 1, 3, 4) if (s or 1) <= T]
)
def test_each_token_but_the_first_is_predicted_once(count, T, stride):
    predicted = []
    for begin, end, context in windows_of_text(count, T, stride):
        assert 0 <= begin and end <= count and 1 <= context < end - begin <= T + 1
        predicted += range(begin + context, end)
        if begin:  # at least T - stride + 1 tokens before each
            assert context >= T - (stride or T) + 1
    assert predicted == list(range(1, count))


def test_windows_without_overlap_are_the_trainers_rows():
    tokens, T = random_tokens(4 * 7 + 1), 7
    loader = DataLoader([tokens], B=4, T=T)
    inputs, targets = loader.next_batch()
    windows = list(windows_of_text(len(tokens), T))
    assert [tokens[w.begin : w.end - 1].tolist() for w in windows] == inputs.tolist()
    assert [tokens[w.begin + w.context : w.end].tolist() for w in windows] == targets.tolist()


def test_the_last_window_has_all_the_context_it_can_have():
    assert list(windows_of_text(7, 4))[-1] == (2, 7, 3)


def test_bytes_of_tokens():
    sizes = token_bytes(byte_encoding(), 300)
    assert sizes[:256].tolist() == [1] * 256 and sizes[256:].tolist() == [0] * 44


def test_end_of_text_counts_for_the_loss_but_not_for_bits_per_byte():
    losses = TextLosses(token_bytes(byte_encoding(), 257))
    losses.add(np.array([1.0, 5.0, 3.0], np.float32), np.array([65, END_OF_TEXT, 66]))
    assert losses.loss().value == 3.0 and losses.tokens == 3
    assert losses.bits_per_byte().value == pytest.approx(2 / math.log(2)) and losses.bytes == 2
    assert TextLosses(None).bits_per_byte() is None


def test_the_interval_of_a_mean_holds_in_95_of_100_cases_even_if_tokens_side_by_side_are_alike():
    random, inside, cases, n = np.random.default_rng(1), 0, 2000, 40
    for _ in range(cases):
        sizes = random.integers(5, 30, n)
        amounts = sizes * random.normal(2.0, 1.0, n)  # all tokens of a window have the same loss
        low, high = estimate(amounts, sizes).interval
        inside += low < 2.0 < high
    assert 0.92 < inside / cases < 0.97


def test_few_windows_have_no_interval():
    ones = np.ones(ENOUGH_WINDOWS)
    assert estimate(ones[1:], ones[1:]).interval is None
    assert estimate(ones, ones).interval == (1.0, 1.0)


# ---------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("tokens", [1, 64, 256, 10**6])
def test_batches_hold_each_row_once_in_few_shapes(tokens):
    lengths = np.random.default_rng(2).integers(1, 100, 200)
    rows = [random_tokens(length + 1, seed) for seed, length in enumerate(lengths)]
    seen, shapes = [], set()
    for batch in batches_by_length(lengths, rows.__getitem__, tokens, 100):
        b, t = batch.inputs.shape
        assert t % LENGTH_STEP == 0 or t == 100
        assert b * t <= max(tokens, t)
        for place, row in enumerate(batch.rows):
            n = lengths[row]
            assert batch.inputs[place, :n].tolist() == rows[row][:-1].tolist() and not batch.inputs[place, n:].any()
            assert batch.targets[place, :n].tolist() == rows[row][1:].tolist()
        assert not batch.inputs[len(batch.rows) :].any()
        seen += batch.rows.tolist()
        shapes.add((b, t))
    assert sorted(seen) == list(range(200))
    assert len(shapes) <= 100 // LENGTH_STEP + 2


def test_rows_of_like_length_leave_little_padding():
    lengths = np.random.default_rng(3).integers(20, 170, 40_000)
    share = padded_share(lengths, 32_768, 1024)
    sizes = sum(batch.inputs.size for batch in batches_by_length(lengths, lambda row: np.zeros(1, int), 32_768, 1024))
    assert share == 1 - lengths.sum() / sizes
    assert share < (LENGTH_STEP / 2) / lengths.mean() + 0.05


def test_no_rows_give_no_batches(model):
    assert list(losses_of_batches(model, batches_by_length([], None, 64, 64))) == []


# ------------------------------------------------------------------------------------------------------------ model


def test_an_evaluation_model_computes_what_a_model_in_training_does(model, weights):
    inputs, targets = random_tokens(3 * 40, 1).reshape(3, 40), random_tokens(3 * 40, 2).reshape(3, 40)
    trainer = GPT2(CONFIG, 3, 40)
    trainer.load_pieces(weights)
    trainer.evaluate(inputs, targets)
    model.evaluate(inputs, targets)
    assert model.losses_to_host().tobytes() == trainer.losses_to_host().tobytes()


def test_batches_may_have_any_shape_that_fits(model):
    for shape in ((8, 64), (16, 32), (512, 1)):
        model.evaluate(np.zeros(shape, np.int32), np.zeros(shape, np.int32))
        assert model.losses_to_host().shape == shape
    for shape in ((17, 32), (1, 65)):
        with pytest.raises(ValueError, match="512 tokens at most, in rows of up to 64"):
            model.forward(np.zeros(shape, np.int32))


@pytest.mark.parametrize("kernels", ["plain", "fast"])
def test_the_kernels_give_the_same_losses(kernels, model, weights):
    small = EvaluationModel(CONFIG, 16, Options(device="gpu", kernels=kernels, tf32=False), tokens=32)
    small.load_pieces(weights)
    inputs, targets = random_tokens(2 * 9, 1).reshape(2, 9), random_tokens(2 * 9, 2).reshape(2, 9)
    for either in (small, model):
        either.evaluate(inputs, targets)
    # float32, and on a GPU sums in another order
    np.testing.assert_allclose(small.losses_to_host(), model.losses_to_host(), rtol=1e-4, atol=1e-4)


def test_too_little_memory_is_said_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr("gpt2_numba.evaluation_model.free_host_bytes", lambda: 100_000)
    with pytest.raises(evaluate.UserError, match="evaluating L=2.* needs .* are free: use a smaller -b or -t"):
        EvaluationModel(CONFIG, 64, Options(), tokens=4096)


def test_batches_shrink_to_what_fits(monkeypatch):
    large = EvaluationModel(CONFIG, 64, Options())
    monkeypatch.setattr("gpt2_numba.evaluation_model.free_host_bytes", lambda: large.arena.nbytes // 2)
    assert 64 <= EvaluationModel(CONFIG, 64, Options()).batch_tokens < large.batch_tokens


# --------------------------------------------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """90 questions, of two, three and four endings, and of all lengths up to 64 tokens."""
    random, examples = np.random.default_rng(5), []
    for index in range(90):
        n = 2 + index % 3
        context = random.integers(97, 122, random.integers(1, 40)).tolist()
        endings = [[32, *random.integers(97, 122, random.integers(1, 24)).tolist()] for _ in range(n)]
        examples.append(Example(int(random.integers(n)), context, endings))
    examples[7] = Example(1, examples[7].context, [[32, 97], [32, 97]])  # a tie
    path = tmp_path_factory.mktemp("questions") / "questions.bin"
    write_examples(path, examples)
    return path


def answered(model, questions):
    answers = Answers(read_examples(questions))
    evaluate.evaluate_questions(model, answers)
    return answers


def answered_in_order(model, examples, B, T):
    """Answers to Examples as llm.c asks for them: in the file's order, in batches of (B, T) tokens, each row padded to T."""
    answers = Answers(examples)
    for start in range(0, len(answers.rows), B):
        inputs, targets = np.zeros((2, B, T), np.int32)
        rows = np.arange(start, min(start + B, len(answers.rows)))
        for place, row in enumerate(rows):
            tokens = answers.tokens(row)
            inputs[place, : len(tokens) - 1], targets[place, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        model.evaluate(inputs, targets)
        answers.add(rows, model.losses_to_host())
    return answers


def test_batched_by_length_the_same_endings_are_chosen_as_in_the_files_order(model, questions):
    by_length, in_order = answered(model, questions), answered_in_order(model, read_examples(questions), 4, 64)
    np.testing.assert_allclose(by_length.nats, in_order.nats, rtol=1e-5)
    assert by_length.choices() == in_order.choices()
    assert by_length.choices()[7] == 0  # of equal endings the first


def test_the_three_rules_against_one_token_at_a_time(model, questions):
    answers = answered(model, questions)
    by_token, by_sum, by_character = [], [], []
    for _, context, endings in answers.examples[:12]:
        sums = []
        for ending in endings:
            tokens = [*context.tolist(), *ending.tolist()]
            sums.append(sum(loss_of_last(model, tokens[: end + 1]) for end in range(len(context), len(tokens))))
        by_sum.append(int(np.argmin(sums)))
        by_token.append(int(np.argmin([s / len(ending) for s, ending in zip(sums, endings)])))
        by_character.append(int(np.argmin([s / (len(ending) - 1) for s, ending in zip(sums, endings)])))  # without the blank
    assert answers.choices()[:12] == by_token
    assert answers.choices(1)[:12] == by_sum
    assert answers.choices(answers.characters(byte_encoding()))[:12] == by_character
    assert not by_token == by_sum == by_character


def test_a_missing_row_is_an_error(questions):
    with pytest.raises(RuntimeError, match="the losses of all 269 rows must have been added, 0 were"):
        Answers(read_examples(questions)).choices()


def test_an_ending_of_nothing_but_a_blank_has_one_character():
    assert Answers([Example(0, np.array([97]), [np.array([32]), np.array([32, 97, 98])])]).characters(byte_encoding()).tolist() == [1, 2]


# ------------------------------------------------------------------------------------------------- a model in training

ONE_BLOCK = parse_descriptor("L=1,NH=2,C=16,T=16,V=61")
MACHINES = pytest.mark.parametrize("device, precision", [("cpu", "fp32"), ("gpu", "bf16")])


@pytest.fixture
def short_rows(monkeypatch):
    """Questions of up to 16 tokens, which batches of (2, 16) tokens hold in rows of 8, 12 and 16."""
    monkeypatch.setattr("gpt2_numba.data.evaluation.rows_by_length.LENGTH_STEP", 4)
    random = np.random.default_rng(6)
    lengths = [(2, (4, 5)), (9, (2, 7)), (3, (3, 2, 4))]
    return [Example(0, random.integers(61, size=c), [random.integers(61, size=n) for n in endings]) for c, endings in lengths]


def in_training(device, precision):
    model = GPT2(ONE_BLOCK, 2, 16, Options(device=device, precision=precision, tf32=False))
    model.load_pieces((name, layer, 4 * values) for name, layer, values in draw_initial_weights(ONE_BLOCK, parameter_shapes(ONE_BLOCK), 3))
    return model


@MACHINES
def test_a_model_in_training_chooses_the_same_endings_as_in_the_files_order(device, precision, short_rows, monkeypatch):
    trainer = in_training(device, precision)
    in_order, seen, add = answered_in_order(trainer, short_rows, 2, 16), [], Answers.add
    monkeypatch.setattr(Answers, "add", lambda answers, rows, losses: seen.append((answers, losses.shape)) or add(answers, rows, losses))
    right = [example._replace(label=choice) for example, choice in zip(short_rows, in_order.choices())]
    assert answer_questions(trainer, right, StopRequest()) == Score(3, 3)
    assert len({shape for _, shape in seen}) == 3
    np.testing.assert_allclose(seen[0][0].nats, in_order.nats, rtol=1e-5 if precision == "fp32" else 1e-2)


@MACHINES
def test_questions_leave_no_trace_in_a_model_in_training(device, precision, short_rows):
    """After a step, an evaluation and another step the results and the parameters are, bit for bit, those of two steps."""
    models, results = [in_training(device, precision) for _ in range(2)], ([], [])
    for step in range(2):
        tokens = random_tokens(2 * 17, step).reshape(2, 17) % 61
        for model, measured in zip(models, results):
            model.zero_grad()
            model.forward(tokens[:, :-1])
            model.backward(tokens[:, 1:])
            measured.append(model.measure(1.0).wait())
            model.update(step, 1e-2)
        answer_questions(models[0], short_rows, StopRequest())
    read = copy_to_host if device == "gpu" else np.copy
    first, second = ([read(model.raw(name)).tobytes() for name in ("params", "m", "v")] for model in models)
    assert first == second and results[0] == results[1]


def test_a_process_without_questions_has_no_score():
    assert answer_questions(in_training("cpu", "fp32"), [], StopRequest()) == Score(0, 0)


# ------------------------------------------------------------------------------------------------------- the command


def run(capsys, *argv):
    code = evaluate.main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return code, out, err


def results(tmp_path, *argv):
    path = tmp_path / "results.json"
    assert evaluate.main([*map(str, argv), "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_the_loss_of_a_text_against_one_token_at_a_time(model, model_file, tmp_path):
    """Two files: each is predicted on its own, after end-of-text. Umlauts are two bytes, and with the byte tokenizer two tokens."""
    texts = ["für Elise", "x" * 3]
    for name, text in zip("ab", texts):
        (tmp_path / name).write_text(text, encoding="utf-8")
    nats, count = 0.0, 0
    for text in texts:
        tokens = [END_OF_TEXT, *text.encode()]
        nats += sum(loss_of_last(model, tokens[:end]) for end in range(2, len(tokens) + 1))
        count += len(tokens) - 1
    found = results(tmp_path, model_file, "--text", tmp_path / "a", tmp_path / "b")["text"]
    assert found["tokens"] == found["bytes"] == count == 13
    assert found["loss"]["value"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / count / math.log(2), rel=1e-5)


@pytest.mark.parametrize("stride", [None, 5])
def test_long_texts_are_predicted_in_windows(model, model_file, tmp_path, stride):
    text = bytes((random_tokens(50) % 26 + 97).tolist())
    (tmp_path / "text").write_bytes(text)
    tokens, T = [END_OF_TEXT, *text], 16
    losses = []
    for window in windows_of_text(len(tokens), T, stride):
        losses += [loss_of_last(model, tokens[window.begin : end]) for end in range(window.begin + window.context + 1, window.end + 1)]
    found = results(tmp_path, model_file, "--text", tmp_path / "text", "-t", T, *(["--stride", stride] if stride else []))["text"]
    assert found["tokens"] == 50 and found["stride"] == (stride or T)
    assert found["loss"]["value"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_of_shards_is_the_trainers_validation_loss(weights, model_file, tmp_path):
    B, T, batches = 2, 16, 3
    tokens = random_tokens(1000)
    write_shard(tmp_path / "mine_val_000000.bin", tokens)
    record_tokenizer(tmp_path / "mine", "bytes")
    trainer = GPT2(CONFIG, B, T)
    trainer.load_pieces(weights)
    loader = DataLoader([tokens], B, T)
    for _ in range(batches):
        trainer.evaluate(*loader.next_batch())
    found = results(tmp_path, model_file, "--shards", tmp_path / "mine_val_*.bin", "-t", T, "--tokens", batches * B * T)["text"]
    assert found["loss"]["value"] == pytest.approx(trainer.take_loss(), rel=1e-6)
    targets = tokens[1 : batches * B * T + 1]
    assert found["tokens"] == batches * B * T and found["bytes"] == np.sum(targets != END_OF_TEXT)


def test_all_shards_are_predicted_each_on_its_own(model_file, tmp_path):
    for index, count in enumerate((100, 40)):
        write_shard(tmp_path / f"mine_val_{index:06d}.bin", random_tokens(count, index))
    assert results(tmp_path, model_file, "--shards", tmp_path / "mine_val_*.bin")["text"]["tokens"] == 99 + 39


def test_without_a_text_a_model_of_bytes_reads_the_built_in_corpus(model_file, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "builtin_corpus", lambda: [part[:2000] for part in builtin_corpus()])
    code, out, _ = run(capsys, model_file)
    assert code == 0 and "the built-in corpus, its validation part\n  1,999 tokens predicted" in out and "(95 % between" in out


def test_questions_are_scored_by_three_rules(model, model_file, questions, tmp_path, capsys):
    code, out, _ = run(capsys, model_file, "--questions", questions, "--json", tmp_path / "results.json")
    assert code == 0 and "90 questions" in out
    answers = answered(model, questions)
    (found,) = json.loads((tmp_path / "results.json").read_text())["questions"]
    rules = {"by_token": None, "by_sum": 1, "by_character": answers.characters(byte_encoding())}
    for rule, sizes in rules.items():
        score = answers.score(sizes)
        assert found[rule]["correct"] == score.correct and tuple(found[rule]["interval"]) == score.interval
        assert str(score) in out


def test_limit_takes_the_first_questions(model_file, questions, tmp_path):
    assert results(tmp_path, model_file, "--questions", questions, "--limit", 11)["questions"][0]["count"] == 11


def test_hugging_face_folders_are_evaluated_too(model_file, tmp_path, capsys):
    from gpt2_numba.export import main as export

    assert export([str(model_file), str(tmp_path / "folder"), "--tokenizer", "none"]) == 0
    (tmp_path / "text").write_text("Never odd or even. " * 20)
    ours, theirs = (results(tmp_path, path, "--text", tmp_path / "text")["text"] for path in (model_file, tmp_path / "folder"))
    assert ours == theirs


@pytest.mark.parametrize(
    "argv, message",
    [
        (["{model}", "--text", "{text}", "--stride", "65"], "--stride must be at most the window of 64 tokens, got 65"),
        (["{model}", "--text", "{text}", "-t", "65"], "-t must be at most the model's longest context, 64, got 65"),
        (["{model}", "--text", "{text}", "--shards", "x"], "--text and --shards are two texts"),
        (["{model}", "--text", "{text}", "--tokenizer", "none"], "a text needs a tokenizer"),
        (["{model}", "--text", "/no/such/file"], "/no/such/file: "),
        (["{model}", "--shards", "/no/such/*.bin"], "matches none"),
        (
            ["{model}", "--shards", "{other}_val_*.bin"],
            "the model must have the vocabulary of the shards' tokenizer, gpt2, of 50257 tokens, and has 257",
        ),
        (["{model}", "--questions", "{text}"], "{text}"),
        (["{model}", "--text", "{text}", "--tokens", "0"], "--tokens"),
        (["{model}", "--text", "{text}", "--json", "/no/such/results.json"], "--json"),
        (["/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_said_in_one_line(argv, message, model_file, tmp_path, capsys):
    names = {"model": model_file, "text": tmp_path / "text", "other": tmp_path / "other"}
    names["text"].write_text("a text")
    write_shard(tmp_path / "other_val_000000.bin", random_tokens(100))
    record_tokenizer(tmp_path / "other", "gpt2")
    code, _, err = run(capsys, *(argument.format(**names) for argument in argv))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message.format(**names) in err


def test_a_model_with_another_vocabulary_needs_a_text(weights, tmp_path, capsys):
    config = parse_descriptor("L=1,NH=1,C=16,T=8,V=300")
    write_model_file(tmp_path / "model.bin", config, GPT2(config, 1, 8).raw("params"))
    code, _, err = run(capsys, tmp_path / "model.bin")
    assert code == 2 and "give --text, --shards or --questions" in err
    write_shard(tmp_path / "shard.bin", random_tokens(30))
    found = results(tmp_path, tmp_path / "model.bin", "--shards", tmp_path / "shard.bin")["text"]
    assert "bits_per_byte" not in found and found["loss"]["value"] == pytest.approx(math.log(300))  # all weights are zero


def test_of_single_letters_all_rules_choose_alike(model):
    """MMLU, asked in letters: each ending is a blank and a letter."""
    random = np.random.default_rng(8)
    contexts = [random.integers(97, 122, random.integers(1, 60)) for _ in range(30)]
    answers = Answers([Example(index % 4, context, [np.array([32, 65 + i]) for i in range(4)]) for index, context in enumerate(contexts)])
    evaluate.evaluate_questions(model, answers)
    assert answers.choices() == answers.choices(1) == answers.choices(answers.characters(byte_encoding()))
    assert len(set(answers.choices())) > 1
