"""The process in which the learner's code runs: `python -m tutorials.check.worker NAME FILE SECONDS`.

It prints JSON, a line each, with fields of a Verdict: {"size": ...} before each call of the learner's function, and a result at the end,
whose "kind" is "" for a pass. What the learner's code prints is caught, and a thread ends the process when the time is over, naming the
line that was being run.
"""

import io
import json
import os
import sys
import threading
from pathlib import Path

KEPT_LINES = 12  # of what the learner's code prints


class FirstLines(io.TextIOBase):
    """A text stream that keeps its first lines and discards the rest."""

    def __init__(self):
        self.text, self.is_full = "", False

    def write(self, text):
        if not self.is_full:
            self.text += text
            lines = self.text.split("\n")
            self.is_full = len(lines) > KEPT_LINES or len(self.text) > 200 * KEPT_LINES
            if self.is_full:
                self.text = "\n".join(lines[:KEPT_LINES])[: 200 * KEPT_LINES] + "\n..."
        return len(text)


class Report:
    """What goes to the parent. Its stream is the process's own stdout, which the learner's code does not see."""

    def __init__(self):
        self.stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        self.printed = sys.stdout = sys.stderr = FirstLines()
        self.lock = threading.Lock()

    def send(self, **fields):
        self.stream.write(json.dumps(fields) + "\n")
        self.stream.flush()

    def end(self, **fields):
        """Send the result, once, and end the process, whatever threads are still running."""
        self.lock.acquire()
        self.send(**fields, printed=self.printed.text)
        os._exit(0)


def watch_the_clock(seconds, path, report):
    """After this time, report the line of the learner's file that is being run, and end the process."""

    def stop():
        from tutorials.check.loading import source_line

        line = running_line(path)
        where = f", in line {line}:\n    {source_line(path, line)}" if line else ""
        report.end(kind="time", message=f"it was still running after {seconds:g} seconds{where}")

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    return timer


def running_line(path):
    """The line of the learner's file that is being run: in a thread of a kernel, if there is one, and in one that does not wait for others."""
    found = []
    for thread, frame in sys._current_frames().items():
        innermost = frame
        while frame is not None and frame.f_code.co_filename != str(path):
            frame = frame.f_back
        if frame is not None:
            waits = innermost.f_globals["__name__"] == "gpt2_numba.gpu.simulator"  # its threads wait there for their turn
            found.append((thread == threading.main_thread().ident, waits, frame.f_lineno))
    return min(found)[2] if found else None


def describe_pass(exercise, record):
    """The fields of a Verdict that a pass has."""
    from tutorials.check import compiling, counting, drawing

    if record is None:
        return {"message": f"right at {len(exercise.sizes)} sizes"}
    counts = counting.busiest_thread(record)
    uncounted = any(count < getattr(exercise.least, kind) for kind, count in vars(counts).items())
    return {
        "message": f"right at {len(exercise.sizes)} sizes, no race",
        "table": counting.format_counts(record, exercise.least, exercise.taken),
        "notes": ["not all accesses are counted: some are of a part of an array, not of an element"] if uncounted else [],
        "pictures": pictures(exercise, record),
        "all_pictures": [drawing.to_json(drawing.picture(record, memory)) for memory in record.sizes],
        "kernels": {launch.kernel.__name__: compiling.describe_arguments(launch.arguments) for launch in record.launches},
        "float64_refused": exercise.float64_refused,
        "local_refused": exercise.local_refused,
    }


def pictures(exercise, record):
    from tutorials.check import drawing

    return [drawing.to_json(drawing.picture(record, memory)) for memory in exercise.drawn if memory in record.sizes]


def main(arguments):
    name, path, seconds = arguments[0], Path(arguments[1]), float(arguments[2])
    report = Report()
    from tutorials.check.examining import examine
    from tutorials.check.exercises import find
    from tutorials.check.failures import Failure

    exercise = find(name)
    report.send(hints=exercise.hints)
    timer = watch_the_clock(seconds, path, report)
    try:
        record = examine(exercise, path, begin=lambda size: report.send(size=size))
    except Failure as failure:
        timer.cancel()
        drawn = pictures(exercise, failure.record) if failure.record is not None else []
        report.end(kind=failure.kind, message=str(failure), own_hint=failure.hint, pictures=drawn)
    timer.cancel()
    report.end(kind="", size="", **describe_pass(exercise, record))


if __name__ == "__main__":
    main(sys.argv[1:])
