"""Loads and stores of eight elements at a time, for float32 and bfloat16 tensors alike.

A GPU reaches its full memory bandwidth only if every thread moves 16 bytes per instruction. Eight bfloat16 elements are one such load,
eight float32 elements two. So the kernels work in steps of `WIDTH` = 8 elements, whatever the type:

    x = cuda.local.array(WIDTH, float32)     # eight registers: every index is a constant once the loops are unrolled
    load8(inp, row * C + c, x)               # eight elements, as float32
    ...
    store8(out, row * C + c, x)              # rounded to the type of `out`

An index counts elements in C order, whatever the array's shape, and must be a multiple of 8, so that the address is a multiple of 16 bytes.
A bfloat16 is the upper 16 bits of a float32: widening is an exact shift; narrowing rounds to nearest, ties to even.

Each operation has two implementations: LLVM instructions for the GPU, and a twin in Python for Numba's simulator.
"""

import numpy as np
from numba import types
from numba.cuda.extending import intrinsic

from gpt2_numba.gpu.backend import SIMULATING, bfloat16_bits, bfloat16_values

WIDTH = 8

if SIMULATING:
    from gpt2_numba.gpu.simulator import elements_of, elements_read

    def _eight(array, index):
        flat = elements_of(array)
        if index % WIDTH or index < 0 or index + WIDTH > flat.size:
            raise IndexError(f"eight elements at index {index} of {flat.size}: misaligned or out of bounds")
        return flat[index : index + WIDTH]

    def load8(array, index, values, first=0):
        """values[first : first + 8] = array[index : index + 8], as float32. Twin for the simulator."""
        eight = elements_read(_eight(array, index))
        values[first : first + WIDTH] = bfloat16_values(eight) if eight.dtype == np.uint16 else eight

    def store8(array, index, values, first=0):
        """array[index : index + 8] = values[first : first + 8], rounded to the array's type. Twin for the simulator."""
        eight, values = _eight(array, index), values[first : first + WIDTH]
        eight[:] = bfloat16_bits(values) if eight.dtype == np.uint16 else values

    def round8(array, values, first=0):
        """Round values[first : first + 8] to the array's type, as `store8` would. Twin for the simulator."""
        if elements_of(array).dtype == np.uint16:
            values[first : first + WIDTH] = bfloat16_values(bfloat16_bits(values[first : first + WIDTH]))

    def load1(array, index):
        """Load one element as float32. Twin for the simulator."""
        value = elements_of(array)[index]
        return bfloat16_values(value)[()] if value.dtype == np.uint16 else value

    def store1(array, index, value):
        """Store one element, rounded to the array's type. Twin for the simulator."""
        flat = elements_of(array)
        flat[index] = bfloat16_bits(value) if flat.dtype == np.uint16 else value

    def load8_words(array, index, words, first=0):
        """words[first : ...] = the bytes of array[index : index + 8]: four words of a bfloat16 array, eight of a float32 one. Twin."""
        loaded = np.array(elements_read(_eight(array, index))).view(np.uint32)
        words[first : first + len(loaded)] = loaded

    def widen8(array, words, first, values):
        """values[0:8] = the elements that `load8_words` has loaded from the array into words[first : ...], as float32. Twin."""
        if elements_of(array).dtype == np.uint16:
            values[:WIDTH] = bfloat16_values(words[first : first + WIDTH // 2].view(np.uint16))
        else:
            values[:WIDTH] = words[first : first + WIDTH].view(np.float32)

    def bits_of_float(value):
        """The 32 bits of a float32. Twin for the simulator."""
        return np.float32(value).view(np.uint32)

    def float_of_bits(bits):
        """The float32 with these 32 bits. Twin for the simulator."""
        return np.uint32(bits).view(np.float32)

else:
    import llvmlite.ir as ir

    _I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
    _FOUR_I32, _FOUR_F32 = ir.VectorType(_I32, 4), ir.VectorType(_F32, 4)
    _BYTES_16 = 16

    def _pointer(context, builder, array_type, array, index, pointee):
        """Address of element `index` (in C order), as a pointer to `pointee`."""
        start = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(start, [index]), pointee.as_pointer())

    def _widen_low(builder, word):
        return builder.bitcast(builder.shl(word, ir.Constant(_I32, 16)), _F32)

    def _widen_high(builder, word):
        return builder.bitcast(builder.and_(word, ir.Constant(_I32, 0xFFFF0000)), _F32)

    def _narrow_two(builder, low, high):
        """Round two float32 to bfloat16, packed in one 32-bit word. PTX ISA: cvt.rn.bf16x2.f32 d, a, b puts a in the upper half."""
        instruction = ir.InlineAsm(ir.FunctionType(_I32, [_F32, _F32]), "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f")
        return builder.call(instruction, [low, high])

    def _check(array, name):
        if not isinstance(array, types.Array) or array.layout != "C" or array.dtype not in (types.float32, types.uint16):
            raise TypeError(f"{name} takes C-contiguous arrays of float32 or uint16 (bfloat16 bits), got {array}")

    def _eight_pointers(context, builder, values_type, values, first):
        """Pointers to values[first], ..., values[first + 7]."""
        start = builder.gep(context.make_array(values_type)(context, builder, values).data, [first])
        return [builder.gep(start, [ir.Constant(_I32, k)]) for k in range(WIDTH)]

    @intrinsic
    def load8(typingctx, array, index, values, first=0):
        """values[first : first + 8] = array[index : index + 8], as float32. One 16-byte load for bfloat16, two for float32."""
        _check(array, "load8")

        def codegen(context, builder, signature, args):
            array_type, _, values_type, _ = signature.args
            targets = _eight_pointers(context, builder, values_type, args[2], args[3])
            if array_type.dtype == types.float32:
                pointer = _pointer(context, builder, array_type, args[0], args[1], _FOUR_F32)
                halves = [builder.load(builder.gep(pointer, [ir.Constant(_I32, k)]), align=_BYTES_16) for k in (0, 1)]
                eight = [builder.extract_element(half, ir.Constant(_I32, k)) for half in halves for k in range(4)]
            else:
                pointer = _pointer(context, builder, array_type, args[0], args[1], _FOUR_I32)
                words = builder.load(pointer, align=_BYTES_16)
                words = [builder.extract_element(words, ir.Constant(_I32, k)) for k in range(4)]
                eight = [widen(builder, word) for word in words for widen in (_widen_low, _widen_high)]
            for element, target in zip(eight, targets):
                builder.store(element, target)
            return context.get_dummy_value()

        return types.void(array, types.int64, values, types.int64), codegen

    @intrinsic
    def store8(typingctx, array, index, values, first=0):
        """array[index : index + 8] = values[first : first + 8], rounded to the array's type. One or two 16-byte stores."""
        _check(array, "store8")

        def codegen(context, builder, signature, args):
            array_type, _, values_type, _ = signature.args
            eight = [builder.load(source) for source in _eight_pointers(context, builder, values_type, args[2], args[3])]
            if array_type.dtype == types.float32:
                pointer = _pointer(context, builder, array_type, args[0], args[1], _FOUR_F32)
                vectors = [(_FOUR_F32, eight[:4]), (_FOUR_F32, eight[4:])]
            else:
                pointer = _pointer(context, builder, array_type, args[0], args[1], _FOUR_I32)
                vectors = [(_FOUR_I32, [_narrow_two(builder, eight[2 * k], eight[2 * k + 1]) for k in range(4)])]
            for k, (vector_type, elements) in enumerate(vectors):
                vector = ir.Constant(vector_type, ir.Undefined)
                for i, element in enumerate(elements):
                    vector = builder.insert_element(vector, element, ir.Constant(_I32, i))
                builder.store(vector, builder.gep(pointer, [ir.Constant(_I32, k)]), align=_BYTES_16)
            return context.get_dummy_value()

        return types.void(array, types.int64, values, types.int64), codegen

    @intrinsic
    def round8(typingctx, array, values, first=0):
        """Round values[first : first + 8] to the array's type, as `store8` would."""
        _check(array, "round8")

        def codegen(context, builder, signature, args):
            array_type, values_type, _ = signature.args
            if array_type.dtype != types.float32:
                pointers = _eight_pointers(context, builder, values_type, args[1], args[2])
                for low, high in zip(pointers[::2], pointers[1::2]):
                    word = _narrow_two(builder, builder.load(low), builder.load(high))
                    builder.store(_widen_low(builder, word), low)
                    builder.store(_widen_high(builder, word), high)
            return context.get_dummy_value()

        return types.void(array, values, types.int64), codegen

    @intrinsic
    def load1(typingctx, array, index):
        """Load one element as float32, at any index."""
        _check(array, "load1")

        def codegen(context, builder, signature, args):
            array_type = signature.args[0]
            if array_type.dtype == types.float32:
                return builder.load(_pointer(context, builder, array_type, args[0], args[1], _F32))
            half = builder.load(_pointer(context, builder, array_type, args[0], args[1], _I16))
            return _widen_low(builder, builder.zext(half, _I32))

        return types.float32(array, types.int64), codegen

    @intrinsic
    def store1(typingctx, array, index, value):
        """Store one element, rounded to the array's type, at any index."""
        _check(array, "store1")

        def codegen(context, builder, signature, args):
            array_type, value = signature.args[0], args[2]
            if array_type.dtype == types.float32:
                builder.store(value, _pointer(context, builder, array_type, args[0], args[1], _F32))
            else:
                half = builder.trunc(_narrow_two(builder, value, ir.Constant(_F32, 0.0)), _I16)
                builder.store(half, _pointer(context, builder, array_type, args[0], args[1], _I16))
            return context.get_dummy_value()

        return types.void(array, types.int64, types.float32), codegen

    @intrinsic
    def load8_words(typingctx, array, index, words, first=0):
        """words[first : ...] (uint32) = the bytes of array[index : index + 8]: four words of a bfloat16 array, eight of a float32 one.

        Unlike load8 it computes nothing, so a thread waits for the memory only where it calls `widen8`.
        """
        _check(array, "load8_words")

        def codegen(context, builder, signature, args):
            array_type, _, words_type, _ = signature.args
            targets = _eight_pointers(context, builder, words_type, args[2], args[3])
            pointer = _pointer(context, builder, array_type, args[0], args[1], _FOUR_I32)
            for i in range(2 if array_type.dtype == types.float32 else 1):
                four = builder.load(builder.gep(pointer, [ir.Constant(_I32, i)]), align=_BYTES_16)
                for k in range(4):
                    builder.store(builder.extract_element(four, ir.Constant(_I32, k)), targets[4 * i + k])
            return context.get_dummy_value()

        return types.void(array, types.int64, words, types.int64), codegen

    @intrinsic
    def widen8(typingctx, array, words, first, values):
        """values[0:8] = the elements that `load8_words` has loaded from the array into words[first : ...], as float32."""
        _check(array, "widen8")

        def codegen(context, builder, signature, args):
            array_type, words_type, _, values_type = signature.args
            sources = _eight_pointers(context, builder, words_type, args[1], args[2])
            targets = _eight_pointers(context, builder, values_type, args[3], ir.Constant(ir.IntType(64), 0))
            if array_type.dtype == types.float32:
                eight = [builder.bitcast(builder.load(source), _F32) for source in sources]
            else:
                eight = [widen(builder, builder.load(source)) for source in sources[:4] for widen in (_widen_low, _widen_high)]
            for element, target in zip(eight, targets):
                builder.store(element, target)
            return context.get_dummy_value()

        return types.void(array, words, types.int64, values), codegen

    @intrinsic
    def bits_of_float(typingctx, value):
        """The 32 bits of a float32."""
        return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(args[0], _I32)

    @intrinsic
    def float_of_bits(typingctx, bits):
        """The float32 with these 32 bits."""
        return types.float32(types.uint32), lambda context, builder, signature, args: builder.bitcast(args[0], _F32)
