"""The table of starts, from results as dev.bench.start measures them."""

from dev.bench import starts


def result(compiled, loaded):
    kernels = [("a", "", False, 1.5)] * compiled + [("b", "", True, 0.25)] * loaded
    inside = {"first step begins": (1, 2.5), "of these, algorithm searched": (15, 3.0)}
    return {
        "seconds": 4.5,
        "parts": {"data": 9, "weights: drawn": 0.5, "weights: converted and copied": 0.25},
        "inside": inside,
        "kernels": kernels,
    }


def test_three_starts_of_which_the_last_has_the_caches_of_the_second():
    seen = []

    def begin(flags, cache, alone=False):
        seen.append((flags, cache, alone))
        return result(3, 0)

    names = [name for name, _ in starts.starts("d12", [], begin)]
    (first, second, third) = seen
    assert names == ["cold, alone", "cold", "warm"] and [alone for *_, alone in seen] == [True, False, False]
    assert first[1] != second[1] == third[1] and first[0] == ["-e", "d12", "-b", "64", "-t", "1024"]
    assert list(starts.starts("d6", ["-b", "1"], begin)) and seen[-1][0] == ["-e", "d6", "-b", "1"]


def test_a_row():
    cells = starts.row("d12", "cold", result(2, 4))
    assert cells == ["d12", "cold", "2.50", "4.50", "0.75", 2, "3.00", 4, "1.00", 15, "3.00"] and len(cells) == len(starts.COLUMNS)
