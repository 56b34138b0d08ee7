"""Log-likelihoods and scores against transformers and, where it is installed, EleutherAI's harness, on an exported folder.

They need torch and transformers (the `oracle` extra); lm_eval is not required: without it the tests that need it are skipped.
"""

import functools
import importlib.util
import json

import numpy as np
import pytest

from dev.oracle import exported_losses
from gpt2_numba import evaluate, export
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import read_examples
from gpt2_numba.data.evaluation.questions import read_questions, write_questions
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.data.tokenizers import byte_encoding, encode
from gpt2_numba.evaluation_model import EvaluationModel
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training.model_file import write_model_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="EleutherAI's harness is optional: lm_eval[hf]")

CONFIG = parse_descriptor("L=2,NH=2,C=32,T=96,V=257")
TOLERANCE = 2e-5  # relative, of sums of up to a hundred losses: float32 in both, sums in another order
CONTEXTS = ["The generator yields", "A tuple is", "für", "Use", "x = [1, 2]\nprint(x)\n"]
ENDINGS = ["one value after another", "immutable", "Élise", "it", "a list: [1, 2]", "nothing at all, and never anything else"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported model, with weights large enough that endings differ much."""
    path = tmp_path_factory.mktemp("model")
    model = GPT2(CONFIG, 1, 8)
    model.load_pieces((name, layer, 4 * values) for name, layer, values in draw_initial_weights(CONFIG, parameter_shapes(CONFIG), 3))
    write_model_file(path / "model.bin", CONFIG, model.raw("params"))
    assert export.main([str(path / "model.bin"), str(path / "folder")]) == 0
    return path / "folder"


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """JSON lines as HellaSwag's: 40 questions with four endings."""
    random, lines = np.random.default_rng(1), []
    for index in range(40):
        endings = random.permutation(ENDINGS)[:4].tolist()
        lines.append(json.dumps({"ctx": CONTEXTS[index % len(CONTEXTS)].strip(), "endings": endings, "label": int(random.integers(4))}))
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answers(folder, questions):
    """Ours, by `evaluate_questions`, of an evaluation file."""
    out = questions.with_suffix(".bin")
    write_questions(out, read_questions(questions, "hellaswag"), byte_encoding(), CONFIG.max_T)
    model = EvaluationModel(CONFIG, CONFIG.max_T, Options())
    evaluate.open_source(str(folder)).load(model)
    answers = Answers(read_examples(out))
    evaluate.evaluate_questions(model, answers)
    return answers


def pairs(questions):
    """(context, continuation) of all endings."""
    return [(context, " " + ending) for context, _, endings in read_questions(questions, "hellaswag") for ending in endings]


@functools.cache
def their_model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def by_transformers(folder, context, continuation):
    """The log-likelihood of a continuation, nats, by transformers' model and tokenizer."""
    model, tokenizer = their_model(folder), transformers.AutoTokenizer.from_pretrained(folder)
    first, whole = (tokenizer(text)["input_ids"] for text in (context, context + continuation))
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(log_probabilities[i - 1, whole[i]]) for i in range(len(first), len(whole)))


def test_log_likelihoods_of_endings_are_those_of_transformers(folder, questions, answers):
    for row in range(0, len(answers.rows), 17):
        expected = by_transformers(folder, *pairs(questions)[row])
        assert -answers.nats[row] == pytest.approx(expected, rel=TOLERANCE)


def test_the_loss_of_a_text_is_that_of_transformers(folder, tmp_path):
    """Longer than the context: the last window is moved back, and predicts only what is left."""
    text = "".join(f"Line {i} of a text that is longer than the context. " for i in range(6))
    model = their_model(folder)
    tokens, T, nats = [256, *text.encode()], CONFIG.max_T, 0.0
    for first in range(1, len(tokens), T):
        last = min(len(tokens), first + T)
        window = tokens[max(0, last - T - 1) : last]
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                model(torch.tensor([window[:-1]])).logits[0].double(), torch.tensor(window[1:]), reduction="none"
            )
        nats += float(losses[len(losses) - (last - first) :].sum())
    (tmp_path / "text").write_text(text)
    assert evaluate.main([str(folder), "--text", str(tmp_path / "text"), "--json", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out").read_text())["text"]
    assert found["tokens"] == len(text)
    assert found["loss"]["value"] == pytest.approx(nats / len(text), rel=TOLERANCE)


# -------------------------------------------------------------------------------------------------------- the harness


@pytest.fixture(scope="module")
def harness(folder):
    """The harness's model of the folder."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@needs_harness
def test_log_likelihoods_of_endings_are_the_harnesss(harness, questions, answers):
    theirs = [value for value, _ in harness.loglikelihood(requests("loglikelihood", pairs(questions)), disable_tqdm=True)]
    np.testing.assert_allclose(-answers.nats, theirs, rtol=TOLERANCE)


@needs_harness
def test_blanks_at_the_end_of_a_context_and_an_empty_one_are_treated_as_by_the_harness(harness, folder):
    from dev.eval.samples import log_likelihoods

    texts = [("A tuple is ", "immutable"), ("", "A tuple"), ("A list:\n\n", " of one"), ("word " * 30, "and the end")]
    theirs = [value for value, _ in harness.loglikelihood(requests("loglikelihood", texts), disable_tqdm=True)]
    np.testing.assert_allclose(log_likelihoods(folder, texts), theirs, rtol=TOLERANCE)


@needs_harness
def test_the_loss_of_texts_is_the_harnesss_rolling_log_likelihood(harness, folder, tmp_path):
    texts = ["short", "A text of two windows or more. " * 8, "x" * CONFIG.max_T, "y" * (CONFIG.max_T + 1)]
    theirs = harness.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)
    for text, expected in zip(texts, theirs):
        (tmp_path / "text").write_text(text)
        assert evaluate.main([str(folder), "--text", str(tmp_path / "text"), "--json", str(tmp_path / "out")]) == 0
        found = json.loads((tmp_path / "out").read_text())["text"]
        assert -found["loss"]["value"] * len(encode(byte_encoding(), text)) == pytest.approx(expected, rel=TOLERANCE)
        assert found["bits_per_byte"]["value"] == pytest.approx(-expected / len(text.encode()) / np.log(2), rel=TOLERANCE)


@needs_harness
def test_the_harness_runs_on_an_exported_folder_and_its_scores_are_ours(folder, questions, answers, tmp_path, capsys, monkeypatch):
    """python -m dev.eval from end to end, with a task made of local questions."""
    from dev.eval import __main__ as dev_eval

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    assert dev_eval.main([str(folder), "--questions", str(questions), "--out", str(tmp_path), "--device", "cpu"]) == 0
    (results,) = (tmp_path / "results").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]["questions_as_in_llmc"]
    assert scores["acc,none"] == answers.score(1).accuracy
    assert scores["acc_norm,none"] == answers.score(answers.characters(byte_encoding())).accuracy
    printed = capsys.readouterr().out
    assert "160 log-likelihoods, largest relative difference" in printed and "acc_norm" in printed


def test_an_exported_folder_has_the_losses_of_the_model_and_a_damaged_one_is_told(folder, tmp_path, capsys):
    write_shard(tmp_path / "x_val_000000.bin", np.random.default_rng(5).integers(0, CONFIG.V, 1000))
    command = [str(folder.parent / "model.bin"), str(folder), "--shards", str(tmp_path / "x_val_*.bin"), "-t", "80"]
    assert exported_losses.main(command) == 0
    assert capsys.readouterr().out.startswith("960 tokens in rows of 80")  # twelve rows: a multiple of a batch

    damaged = transformers.GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        damaged.transformer.h[1].mlp.c_fc.weight[3] += 1.0
    damaged.save_pretrained(tmp_path / "damaged")
    assert exported_losses.main([command[0], str(tmp_path / "damaged"), *command[2:]]) == 1
    assert exported_losses.main([*command, "--tokens", "100"]) == 2
