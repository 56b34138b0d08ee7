"""How good is the model? Its loss on unseen text, its accuracy on multiple-choice questions, and samples of its text.

Each takes a while, and ends early when the run is asked to stop: `stop` is its StopRequest. The result is then None.
"""

from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import Score
from gpt2_numba.inference import Decoder
from gpt2_numba.training.sampler import Xorshift64Star, sample_from_logits

SAMPLING_SEED = 1337


def validate(model, loader, batches, stop):
    """Mean loss (nats per token) over the first `batches` batches of the validation data, divided among the processes."""
    loader.reset()
    group, mine = model.group, 0
    for index in range(batches):
        if stop.requested:
            break
        if index % group.ranks == group.rank:
            group.doing(f"validation, batch {index + 1}")
            model.evaluate(*loader.next_batch())
            mine += 1
        else:
            loader.skip()
    total, stops = group.sum([model.take_loss() * mine if mine else 0.0, bool(stop.requested)])
    return None if stops else total / batches


def answer_questions(model, questions, stop):
    """The Score of all processes. questions: the Examples that are this one's part."""
    group, answers = model.group, Answers(questions)
    for batch in answers.batches(model.B * model.T, model.T):
        if stop.requested:
            break
        group.doing("answering multiple-choice questions")
        model.evaluate(batch.inputs, batch.targets)
        answers.add(batch.rows, model.losses_to_host())
    model.discard_losses()  # a mean over these batches has no meaning
    mine = answers.score() if answers.complete else None
    correct, examples, stops = group.sum([mine.correct, mine.examples, 0] if mine else [0, 0, 1])
    return None if stops else Score(int(correct), int(examples))


def sample(model, encoding, count, stop):
    """Text of `count` tokens that the model generates after end-of-text, always with the same random numbers.

    encoding: a tokenizer; None returns token numbers. Once there are more than T tokens, each is predicted from the newest T.
    """
    coins, decoder = Xorshift64Star(SAMPLING_SEED), Decoder(model, slide=1)
    vocabulary = encoding.n_vocab if encoding else model.config.V  # the model's may count padding
    tokens = [vocabulary - 1]  # end-of-text is the last token of both tokenizers
    for index in range(count):
        if stop.requested:
            return None
        model.group.doing(f"sampling, token {index + 1}")
        (logits,) = decoder.step(tokens[-1:])
        tokens.append(sample_from_logits(logits[:vocabulary], coins.next_coin()))
    return " ".join(map(str, tokens[1:])) if encoding is None else encoding.decode(tokens[1:])
