"""What can be wrong with a learner's file. The kind of a failure decides which hint fits."""


class Failure(Exception):
    """The first thing that is wrong, for a beginner: one message of a line or two.

    kind  one of KINDS
    size    at which the function was called, as text; "" if it was not
    hint    that belongs to this very failure; "" for those of its kind
    record  the watching.Record of the call, if a picture of it may help
    """

    size = hint = ""
    record = None

    def __init__(self, kind, message):
        assert kind in KINDS, kind
        super().__init__(message)
        self.kind = kind


KINDS = {
    "file": "there is no such file, or it is not text",
    "syntax": "it is not Python",
    "load": "it raises an exception as it is loaded",
    "function": "it does not define the function, or with other parameters",
    "error": "its code raises an exception",
    "launch": "a kernel is launched with blocks that cannot be: none, or of too many threads",
    "not launched": "no kernel is launched",
    "bounds": "an index is outside of an array",
    "race": "two threads touch the same memory with nothing to order them",
    "barrier": "not all threads of a block reach a barrier",
    "input": "it writes to an array that is only to be read",
    "not written": "an element of an output is still NaN",
    "value": "an element is wrong",
    "host": "an element is right, but no thread of a kernel wrote it",
    "shared": "it is right, but does not go through shared memory",
    "accesses": "it is right, but a thread touches memory more often than it should",
    "transactions": "it is right, but moves more of the memory than it uses",
    "barriers": "it is right, but waits at more barriers than it needs",
    "compile": "the simulator runs it, but it cannot be compiled for a GPU",
    "local": "it keeps in memory what should be in registers",
    "float64": "it computes in float64",
    "compiler": "it cannot be judged: the exercise is about compiled code, and there is no compiler",
    "time": "it does not end in time",
    "crash": "its process ends without a word",
}
