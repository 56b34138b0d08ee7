"""14_plan: steps, FLOP, hours and dollars of a run, from a few numbers."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def planned(parameters, L, C, T, tokens, batch_tokens, gpus, peak, mfu, price, *, wrong=""):
    """The answer; with `wrong`, one of the usual wrong ones."""
    steps = -(-tokens // batch_tokens) if wrong == "rounded up" else tokens // batch_tokens
    trained = tokens if wrong == "tokens left over" else steps * batch_tokens
    forward = 2 if wrong == "forward only" else 6
    pairs = {"no attention": 0, "one layer": C * T, "all pairs": 2 * L * C * T}.get(wrong, L * C * T)
    flop = float(trained * forward * (parameters + pairs))  # too large for an int64
    speed = peak * (1 / mfu if wrong == "mfu upside down" else 1 if wrong == "at the peak" else mfu) * (1 if wrong == "one gpu" else gpus)
    hours = flop / speed / (60 if wrong == "minutes" else 1 if wrong == "seconds" else 3600)
    return {"return": {"steps": steps, "flop": flop, "hours": hours, "dollars": hours * price * (1 if wrong == "one bill" else gpus)}}


def mistake(wrong, hint):
    return Mistake(lambda **given: planned(**given, wrong=wrong), hint)


def run(parameters, L, C, T, tokens, batch_tokens, gpus, price):
    return {
        "parameters": parameters, "L": L, "C": C, "T": T, "tokens": tokens, "batch_tokens": batch_tokens, "gpus": gpus, "price": price,
    }  # fmt: skip


def arguments(random, **given):
    return {**{name: given[name] for name in given if name != "price"}, "peak": 989e12, "mfu": 0.48, "price": given["price"]}


EXERCISE = host_exercise(
    function="plan",
    arguments=arguments,
    reference=planned,
    sizes=(
        run(1000, 1, 10, 4, 100, 10, 1, 1.0),
        run(1000, 3, 10, 4, 109, 10, 1, 2.0),
        run(1_557_686_400, 48, 1600, 1024, 33_600_000_000, 1_048_576, 8, 3.5),
    ),
    hints={
        "": (
            "First the steps, tokens divided by batch_tokens, rounded down. From there on count with the tokens of those steps.",
            "flop = tokens of all steps times what one token costs; seconds = flop / what all GPUs compute in a second.",
        ),
        "not written": ("The function must return a dict with four keys.",),
        "value": (
            "The message names the first of the four that is wrong. Those behind it follow from it. (Steps are whole: // rounds down to an integer.)",
        ),
    },
    mistakes=(
        mistake("rounded up", "A step needs all of its tokens: round down."),
        mistake("tokens left over", "Tokens that do not fill a step are not trained on: take steps * batch_tokens."),
        mistake("forward only", "2 FLOP a parameter is the forward pass. Backward takes twice as many again: 6 together."),
        mistake("no attention", "Attention's products have no parameters: they come on top, 6 C T in each layer."),
        mistake("one layer", "That is the attention of one layer, and there are L."),
        mistake("all pairs", "A token sees T / 2 others on average: 6 C T, not 12."),
        mistake("mfu upside down", "At half the peak a run takes twice as long: divide the FLOP by gpus * peak * mfu."),
        mistake("at the peak", "Nobody reaches the peak of the data sheet: mfu says how much of it."),
        mistake("one gpu", "The GPUs share the work: all of them together compute gpus * peak * mfu in a second."),
        mistake("one bill", "price is for one GPU, and all of them are rented for all the hours."),
        mistake("minutes", "flop / (FLOP per second) is in seconds: 3600 to an hour."),
        mistake("seconds", "flop / (FLOP per second) is in seconds: 3600 to an hour."),
    ),
    wrong=(
        Wrong("rounded up", {"tokens // batch_tokens": "-(-tokens // batch_tokens)"}, "value", "round down"),
        Wrong("not whole", {"tokens // batch_tokens": "tokens / batch_tokens"}, "value"),
        Wrong("all tokens", {"steps * batch_tokens * (": "tokens * ("}, "value", "not trained on"),
        Wrong("forward only", {"6 * parameters + 6 * L": "2 * parameters + 2 * L"}, "value", "forward pass"),
        Wrong("without attention", {" + 6 * L * C * T": ""}, "value", "come on top"),
        Wrong("attention of one layer", {"6 * L * C": "6 * C"}, "value", "there are L"),
        Wrong("all pairs", {"6 * L * C": "12 * L * C"}, "value", "6 C T, not 12"),
        Wrong("times mfu", {"/ (gpus * peak * mfu)": "/ (gpus * peak) * mfu"}, "value", "twice as long"),
        Wrong("at the peak", {"peak * mfu": "peak"}, "value", "Nobody reaches"),
        Wrong("one GPU works", {"(gpus * peak": "(peak"}, "value", "share the work"),
        Wrong("one GPU is paid", {"hours * gpus * price": "hours * price"}, "value", "for one GPU"),
        Wrong("seconds", {" / 3600": ""}, "value", "3600 to an hour"),
        Wrong("printed", {"return {": "result = {"}, "not written", "must return"),
    ),
)
