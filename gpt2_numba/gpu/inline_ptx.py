"""Inline PTX: how the intrinsics of this package emit instructions that Numba does not expose."""

from llvmlite import ir

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_LETTERS = {I32: "r", I64: "l", F32: "f"}  # the register constraint of each type in inline assembly
_SHARED, _GLOBAL = 3, 1  # LLVM's address spaces for PTX's state spaces


def inline_ptx(builder, instruction, results, operands, touches_memory=False):
    """Emit `instruction`, in which $0, $1, ... are first the results, then the operands. Returns the results as a list of LLVM values.

    results   list of LLVM types
    operands  list of LLVM values of type I32, I64 or F32
    touches_memory  True if it reads or writes memory: the compiler keeps it and its order among loads, stores and barriers. Otherwise
                    the compiler may move the instruction, or drop it if its result is unused.
    """
    constraints = ["=" + _LETTERS[t] for t in results] + [_LETTERS[value.type] for value in operands] + ["~{memory}"] * touches_memory
    returned = ir.VoidType() if not results else results[0] if len(results) == 1 else ir.LiteralStructType(results)
    function = ir.FunctionType(returned, [value.type for value in operands])
    value = builder.call(ir.InlineAsm(function, instruction, ",".join(constraints), side_effect=touches_memory), operands)
    if len(results) < 2:
        return [value] * len(results)
    return [builder.extract_value(value, k) for k in range(len(results))]


def data_pointer(context, builder, array_type, array):
    """Address of an array's first element."""
    return context.make_array(array_type)(context, builder, array).data


def shared_address(context, builder, array_type, array, offset):
    """32-bit address of byte `offset` of a byte array in shared memory, as the instructions on shared memory take it."""
    start = data_pointer(context, builder, array_type, array)
    start = builder.addrspacecast(start, start.type.pointee.as_pointer(_SHARED))
    return builder.add(builder.ptrtoint(start, I32), offset)


def global_address(context, builder, array_type, array, index):
    """64-bit address of element `index`, in C order, of an array in global memory."""
    element = builder.gep(data_pointer(context, builder, array_type, array), [index])
    return builder.ptrtoint(builder.addrspacecast(element, element.type.pointee.as_pointer(_GLOBAL)), I64)


def local_addresses(context, builder, array_type, array, start, count):
    """Addresses of `count` elements of a cuda.local.array, from element `start` (an I64 value) on."""
    first = builder.gep(data_pointer(context, builder, array_type, array), [start])
    return [builder.gep(first, [ir.Constant(I32, k)]) for k in range(count)]
