"""Ways to damage a file: functions (path, rng) that change it in place."""

import functools
import struct

HEADER_BYTES = 1024  # of llm.c's files


def flip_bit(path, rng, end=None):
    """Flip a bit, of the first `end` bytes."""
    content = bytearray(path.read_bytes()) or bytearray(1)  # llm.c's DONE is empty
    content[rng.randrange(min(len(content), end or len(content)))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut_off(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def lengthen(path, rng):
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice((1, 2, 4, 512, 4096))))


def zero_block(path, rng):
    """Zero a block that is not zero, as a lost sector leaves it."""
    content = bytearray(path.read_bytes())
    size = rng.choice((1, 16, 512))
    places = [place for place in range(0, len(content), size) if any(content[place : place + size])]
    place = rng.choice(places) if places else 0
    content[place : place + size] = bytes(len(content[place : place + size]))
    path.write_bytes(content)


def zero_beginning(path, rng):
    content = path.read_bytes()
    size = rng.randrange(1, HEADER_BYTES)
    path.write_bytes(bytes(size) + content[size:])


DAMAGE = {"flip a bit": flip_bit, "cut off": cut_off, "lengthen": lengthen, "zero a block": zero_block}
# Magic number, version and the first size: what follows in a header may be legal when it is changed.
HEADER_DAMAGE = {**DAMAGE, "flip a bit": functools.partial(flip_bit, end=12), "zero a block": zero_beginning}


def write_token(path, position, token):
    """Overwrite a token of a shard in place."""
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + 2 * position)
        file.write(struct.pack("<H", token))
