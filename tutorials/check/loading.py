"""Loads the learner's file, and puts whatever its code raises into the words of a Failure."""

import inspect
import linecache
import re
import types

from tutorials.check.failures import Failure


def load_module(path):
    """Run the file at `path` and return it as a module. Raises Failure for a file that cannot be read, parsed or run."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Failure("file", f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure("file", f"{path} cannot be read: {error}") from None
    try:
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        raise Failure("syntax", _describe_syntax(error)) from None
    module = types.ModuleType(f"exercise_{path.stem}")
    module.__file__ = str(path)
    linecache.checkcache(str(path))
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        raise explained(error, path, kind="load") from None
    return module


def _describe_syntax(error):
    line = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""
    text = (getattr(error, "text", None) or "").strip()
    return f"{line}this is not Python: {getattr(error, 'msg', error)}" + (f"\n    {text}" if text else "")


def find_function(module, exercise):
    """The exercise's function of a module. Raises Failure if it is missing or has other parameters."""
    name, expected = exercise.function, list(exercise.parameters)
    wanted = f"{name}({', '.join(expected)})"
    function = getattr(module, name, None)
    if function is None:
        raise Failure("function", f"the file does not define the function {wanted}")
    if not inspect.isfunction(function):
        raise Failure("function", f"{name} must be an ordinary function, which launches the kernel: without @cuda.jit")
    found = list(inspect.signature(function).parameters)
    if found != expected:
        raise Failure("function", f"the function must be {wanted}, and is {name}({', '.join(found)})")
    return function


# ------------------------------------------------------------------------------------------------------ exceptions


def explained(error, path, kind="error"):
    """An exception of the learner's code, as a Failure: what happened, in which thread, and the learner's own line."""
    line = _own_line(error, path)
    where, message = _split_thread(" ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split()))
    if isinstance(error, Failure):
        failure = Failure(error.kind, _at_line(str(error), path, line))
        failure.hint = error.hint
        return failure
    name = type(error).__name__
    if name == "RaceError":
        return Failure("race", with_lines(message, path))
    if name == "BarrierError" or message.startswith("threads wait for others"):
        return Failure("barrier", with_lines(message, path))
    if isinstance(error, IndexError) and "out of bounds for shape" in message:
        return Failure("bounds", with_lines(message, path))
    if "configuration was not specified" in message or "None" in message and "griddim" in message:
        return Failure(
            "launch", _at_line("a kernel is called without its numbers of blocks and threads: kernel[blocks, threads](...)", path, line)
        )
    if match := re.match(r"(grid|block)dim must be .*got \[?(.*?)\]?$", message):
        what = "blocks" if match[1] == "grid" else "threads"
        return Failure("launch", _at_line(f"the number of {what} must be an integer, got {match[2]}: // divides integers", path, line))
    if isinstance(error, SystemExit):
        message = "the code ends the program"
    return Failure(kind, _at_line(f"{where}{name}: {message}" if message else f"{where}{name}", path, line))


def _own_line(error, path):
    """The number of the learner's innermost line that an exception passed through, or None."""
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _split_thread(message):
    """('thread 3 of block 0: ', the rest) of a message of the simulator, ('', message) of any other."""
    match = re.match(r"tid=\[(.*?)\] ctaid=\[(.*?)\]:? ?", message)
    if not match:
        return "", message
    thread, block = (_shorten(group) for group in match.groups())
    return f"thread {thread} of block {block}: ", message[match.end() :]


def _shorten(index):
    """'3, 0, 0' -> '3'; '3, 1, 0' -> '(3, 1)'."""
    numbers = re.findall(r"\d+(?=\)|,|$)", index)
    while len(numbers) > 1 and numbers[-1] == "0":
        numbers.pop()
    return numbers[0] if len(numbers) == 1 else f"({', '.join(numbers)})"


def _at_line(message, path, line):
    if line is None:
        return message
    return f"line {line}: {message}\n    {source_line(path, line)}"


def source_line(path, line):
    """The text of a line of the learner's file."""
    return linecache.getline(str(path), line).strip()


def with_lines(message, path):
    """A message of the race detector: places in the learner's file as line numbers, with the text of these lines below."""
    place = re.compile(rf"\b{re.escape(path.name)}:(\d+)")
    lines = sorted({int(line) for line in place.findall(message)})
    message = place.sub(r"line \1", message).replace(" or sync_warp", "")  # the course knows one kind of barrier
    return "\n".join([message, *(f"    line {line}: {source_line(path, line)}" for line in lines)])
