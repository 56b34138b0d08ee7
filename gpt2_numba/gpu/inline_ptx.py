"""One PTX instruction as a call in LLVM's language: how the intrinsics of this package reach what Numba has no name for."""

from llvmlite import ir

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_LETTERS = {I32: "r", I64: "l", F32: "f"}  # what inline PTX calls a register of this type
_SHARED, _GLOBAL = 3, 1  # LLVM's numbers for PTX's state spaces


def inline_ptx(builder, instruction, results, operands, touches_memory=False):
    """Emit `instruction`, in which $0, $1, ... are the results, then the operands. Returns the results as a list of LLVM values.

    results   list of LLVM types                operands  list of LLVM values of type I32, I64 or F32
    touches_memory  it reads or writes memory: keep it, and keep its order among loads, stores and barriers. Without it the compiler
                    may move the instruction, or drop it where nobody uses the result.
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
    """Address of byte `offset` of an array of bytes in shared memory, 32 bits wide, as the instructions on shared memory take it."""
    start = data_pointer(context, builder, array_type, array)
    start = builder.addrspacecast(start, start.type.pointee.as_pointer(_SHARED))
    return builder.add(builder.ptrtoint(start, I32), offset)


def global_address(context, builder, array_type, array, index):
    """Address of element `index`, in C order, of an array in the GPU's memory, 64 bits wide."""
    element = builder.gep(data_pointer(context, builder, array_type, array), [index])
    return builder.ptrtoint(builder.addrspacecast(element, element.type.pointee.as_pointer(_GLOBAL)), I64)


def local_values(context, builder, array_type, array, start, count):
    """Addresses of `count` elements of a cuda.local.array from element `start` on (an I64 value)."""
    first = builder.gep(data_pointer(context, builder, array_type, array), [start])
    return [builder.gep(first, [ir.Constant(I32, k)]) for k in range(count)]
