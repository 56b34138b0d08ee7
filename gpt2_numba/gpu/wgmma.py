"""Products of 64 x 64 tiles on Hopper's tensor cores. A warpgroup, four warps, starts them and continues with other work while they run.

A *tile* is 64 rows of 64 bfloat16 elements in shared memory: 8,192 bytes at a multiple of 1,024. A row is 128 bytes, eight *pieces* of 16;
piece k of row r is stored at position k ^ (r % 8) of its row ("128-byte swizzle"). So eight pieces of one column, which the tensor cores
read together, are spread over all 32 banks instead of four.

Of a 64 x 64 matrix in registers each warp holds 16 rows, distributed over its threads as in tensor_cores.py for 16 x 8 and 16 x 16. With
warp w = 0..3, lane = 4 g + c (g = 0..7, c = 0..3) and indices counted in C order, whatever the axes of the local arrays:

    float32, result[32]:     result[4 n + 2 half + i] is element (16 w + 8 half + g,  8 n + 2 c + i)     n = 0..7, half = 0..1, i = 0..1
    bfloat16, factor[16]:    factor[2 n + half] holds the same two elements, i = 0 in the lower half

So packing neighbouring elements of a result gives the first factor of the next product, with no exchange between threads.

    k = tile_descriptor(memory, K_TILE)
    begin_multiply_transposed(scores, q, k)       scores  = q kᵀ     q: a factor or a tile
    begin_multiply_add(out, weights, v)           out    += w v      w: a factor
    ...                                           other work, while the products run
    wait_for_products(1, scores)                  all but the last are done; scores may be read
    wait_for_products(0, out)                     all are done

Between the call and its wait no thread may access the result, the factor or the tiles. If threads have written a tile, by copies or stores,
every writing thread must call `fence_async`, followed by a barrier, since tensor cores read shared memory through the async proxy.

PTX ISA 9.0, section 9.7.15, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate". Only for compute capability 9.0 (sm_90a).
The twins for the simulator compute at once, but deliver the result at the wait, and detect factors that have changed in the meantime.
"""

from numba import types
from numba.cuda.extending import intrinsic

from gpt2_numba.gpu.backend import SIMULATING

TILE = 64  # rows of a tile, and elements per row
ROW_BYTES = 2 * TILE
TILE_BYTES = TILE * ROW_BYTES
WARPGROUP = 128  # threads
RESULT_SIZE = TILE * TILE // WARPGROUP  # float32 elements of a result per thread
FACTOR_SIZE = RESULT_SIZE // 2  # words of two bfloat16 elements of a factor per thread

if SIMULATING:
    import threading

    import numpy as np

    from gpt2_numba.gpu.backend import bfloat16_values
    from gpt2_numba.gpu.shared_memory import copy16_async
    from gpt2_numba.gpu.simulator import elements_read, meet_warpgroup

    _THREAD, _INDEX = np.ogrid[:WARPGROUP, :RESULT_SIZE]
    _ROW = _THREAD // 32 * 16 + _INDEX // 2 % 2 * 8 + _THREAD % 32 // 4
    _COLUMN = _INDEX // 4 * 8 + _THREAD % 4 * 2 + _INDEX % 2
    _POSITION = np.arange(8) ^ np.arange(TILE)[:, None] % 8  # of piece k in row r

    class _Tile:
        """The descriptor of a tile in shared memory."""

        def __init__(self, memory, offset):
            if offset % 1024:
                raise ValueError(f"a tile must begin at a multiple of 1024 bytes, got {offset}")
            self.offset, self.stored = offset, memory[offset : offset + TILE_BYTES]

        def matrix(self):
            pieces = np.take_along_axis(
                elements_read(self.stored, by_tensor_cores=True).reshape(TILE, 8, 16), _POSITION[:, :, None], axis=1
            )
            return bfloat16_values(pieces.reshape(TILE, ROW_BYTES).view(np.uint16))

    def _matrix(factors):
        """The matrix of which 128 threads hold a share each, or which is in the tile that all of them name."""
        if not isinstance(factors[0], _Tile):
            matrix = np.empty((TILE, TILE), np.float32)
            matrix[_ROW, _COLUMN] = bfloat16_values(np.array(factors, np.uint32).view(np.uint16)).reshape(WARPGROUP, -1)
            return matrix
        if len({tile.offset for tile in factors}) > 1:
            raise ValueError("the threads of a warpgroup must name the same tile")
        return factors[0].matrix()

    def _begin(result, a, b, multiply, accumulate):
        thread = threading.current_thread()
        product = meet_warpgroup((a, b), lambda factors: multiply(*map(_matrix, zip(*factors)))[_ROW, _COLUMN])
        product = product[thread.thread_id % WARPGROUP].reshape(result.shape) + (result if accumulate else 0)
        result[:] = np.nan  # until the wait
        stored = [np.asarray(factor.stored if isinstance(factor, _Tile) else factor) for factor in (a, b)]
        thread.products.append((result, product, stored, [factor.copy() for factor in stored]))

    def tile_descriptor(memory, offset):
        """The tile at byte `offset` of shared memory. Twin for the simulator."""
        return _Tile(memory, offset)

    def begin_multiply_transposed(result, a, b):
        """result = a bᵀ. Twin for the simulator."""
        _begin(result, a, b, lambda a, b: a @ b.T, accumulate=False)

    def begin_multiply_add(result, a, b):
        """result += a b. Twin for the simulator."""
        _begin(result, a, b, lambda a, b: a @ b, accumulate=True)

    def wait_for_products(left, result):
        """Wait until at most `left` products are running. Twin for the simulator."""
        products = threading.current_thread().products
        while len(products) > left:
            target, product, factors, before = products.pop(0)
            if any((now != then).any() for now, then in zip(factors, before)):
                raise RuntimeError("a factor has changed while its product was running")
            target[:] = product

    def copy_row16_async(memory, offset, array, start, row, stride):
        """Copy 16 bytes of `array` from element start + row * stride to byte `offset`. Twin for the simulator."""
        copy16_async(memory, offset, array, start + row * stride)

    def fence_async():
        """Record the fence for race_detector.py; the simulator itself does not need it. Twin for the simulator."""
        thread = threading.current_thread()
        thread.fences.append(thread.barriers)

else:
    from llvmlite import ir

    from gpt2_numba.gpu.inline_ptx import F32, I32, I64, data_pointer, inline_ptx, shared_address

    # The descriptor of a tile, 64 bits (PTX ISA 9.7.15.5.1): swizzle mode (1 << 62: 128 bytes), stride between groups of eight rows
    # (bits 32-45: 1,024 bytes), leading dimension offset (bits 16-29: not used with this swizzle, 1), address (bits 0-13); sizes and
    # address in units of 16 bytes. Only the lower word differs between tiles, so only that is computed.
    _DESCRIPTOR_HIGH = 1 << 30 | 1024 // 16
    _DESCRIPTOR_LOW = 1 << 16
    # One instruction multiplies 16 columns of `a`. How far the descriptor advances from one to the next, in units of 16 bytes:
    _DEPTH, _STEPS = 16, TILE // 16
    _ALONG_ROW = _DEPTH * 2 // 16
    _DOWN_ROWS = _DEPTH * ROW_BYTES // 16

    def _load_all(builder, pointer, count):
        return [builder.load(builder.gep(pointer, [ir.Constant(I32, k)])) for k in range(count)]

    def _store_all(builder, pointer, values):
        for k, value in enumerate(values):
            builder.store(value, builder.gep(pointer, [ir.Constant(I32, k)]))

    def _assembly(builder, text, constraints, arguments, results):
        """Call inline PTX that must keep its order, also among memory accesses. Returns one value for each type in `results`."""
        function = ir.FunctionType(ir.LiteralStructType(results), [argument.type for argument in arguments])
        call = builder.call(ir.InlineAsm(function, text, ",".join([*constraints, "~{memory}"]), side_effect=True), arguments)
        return [builder.extract_value(call, k) for k in range(len(results))]

    def _begin(b_transposed, accumulate):
        """Code generation of a product: four instructions over the depth of 64, between fence and commit.

        The fence makes earlier writes to the registers of `result` and `a` visible to the instructions (9.7.15.7.1). These read and write
        `result` long after they start, so a single asm statement has its registers as inputs and outputs.
        """

        def codegen(context, builder, signature, args):
            result_type, a_type, _ = signature.args
            target = data_pointer(context, builder, result_type, args[0])
            result = ", ".join(f"${k}" for k in range(RESULT_SIZE))
            a_is_tile = not isinstance(a_type, types.Array)
            a = [args[1]] if a_is_tile else _load_all(builder, data_pointer(context, builder, a_type, args[1]), FACTOR_SIZE)
            before = _load_all(builder, target, RESULT_SIZE) if accumulate else []
            # "&": no register of the result may also be one of a factor, since results are written while factors are still needed
            constraints = ["=&f"] * RESULT_SIZE + [str(k) for k in range(len(before))] + ["r"] * (len(a) + 1)
            first_a = RESULT_SIZE + len(before)
            b_step = _ALONG_ROW if b_transposed else _DOWN_ROWS
            lines = [".reg .pred add;", ".reg .b32 low;", ".reg .b64 a, b;", "wgmma.fence.sync.aligned;"]
            for step in range(_STEPS):
                lines += [f"setp.ne.b32 add, {int(accumulate or step > 0)}, 0;"]
                lines += [f"add.u32 low, ${first_a + len(a)}, {b_step * step};", f"mov.b64 b, {{low, {_DESCRIPTOR_HIGH}}};"]
                if a_is_tile:
                    lines += [f"add.u32 low, ${first_a}, {_ALONG_ROW * step};", f"mov.b64 a, {{low, {_DESCRIPTOR_HIGH}}};"]
                    first, majors = "a", f"0, {int(not b_transposed)}"
                else:
                    first = "{" + ", ".join(f"${first_a + 4 * step + k}" for k in range(4)) + "}"
                    majors = f"{int(not b_transposed)}"
                lines += [f"wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{result}}}, {first}, b, add, 1, 1, {majors};"]
            text = "{\n" + "\n".join([*lines, "wgmma.commit_group.sync.aligned;"]) + "\n}"
            _store_all(builder, target, _assembly(builder, text, constraints, [*before, *a, args[2]], [F32] * RESULT_SIZE))
            return context.get_dummy_value()

        return codegen

    def _signature(result, a):
        return types.void(result, a if isinstance(a, types.Array) else types.uint32, types.uint32)

    @intrinsic
    def begin_multiply_transposed(typingctx, result, a, b):
        """result = a bᵀ.  result: a local array of 32 float32;  a: one of 16 uint32, or a tile's descriptor;  b: a descriptor."""
        return _signature(result, a), _begin(b_transposed=True, accumulate=False)

    @intrinsic
    def begin_multiply_add(typingctx, result, a, b):
        """result += a b.  Arguments as for begin_multiply_transposed."""
        return _signature(result, a), _begin(b_transposed=False, accumulate=True)

    @intrinsic
    def wait_for_products(typingctx, left, result):
        """Wait until at most `left` (a constant) of this warpgroup's products are still running; then `result` may be read.

        wgmma.wait_group (9.7.15.7.3). The registers of `result` pass through the asm, so that the compiler moves no use of them before it.
        """
        if not isinstance(left, types.IntegerLiteral):
            return None  # Numba tries again, with the constant

        def codegen(context, builder, signature, args):
            target = data_pointer(context, builder, signature.args[1], args[1])
            constraints = ["=f"] * RESULT_SIZE + [str(k) for k in range(RESULT_SIZE)]
            text = f"wgmma.wait_group.sync.aligned {left.literal_value};"
            values = _assembly(builder, text, constraints, _load_all(builder, target, RESULT_SIZE), [F32] * RESULT_SIZE)
            _store_all(builder, target, values)
            return context.get_dummy_value()

        return types.void(left, result), codegen

    @intrinsic
    def tile_descriptor(typingctx, memory, offset):
        """The lower word of the descriptor of the tile at byte `offset` of shared memory. The upper word is the same for all tiles."""

        def codegen(context, builder, signature, args):
            address = shared_address(context, builder, signature.args[0], args[0], args[1])
            return builder.or_(builder.lshr(address, ir.Constant(I32, 4)), ir.Constant(I32, _DESCRIPTOR_LOW))

        return types.uint32(memory, types.uint32), codegen

    @intrinsic
    def fence_async(typingctx):
        """Make this thread's earlier writes to shared memory visible to later products; after a barrier, those of all calling threads.

        fence.proxy.async (9.7.13.4).
        """

        def codegen(context, builder, signature, args):
            inline_ptx(builder, "fence.proxy.async.shared::cta;", [], [], touches_memory=True)
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def copy_row16_async(typingctx, memory, offset, array, start, row, stride):
        """Copy 16 bytes of `array` from element start + row * stride to byte `offset` of shared memory: copy16_async for rows of a matrix.

        If only `row` changes, the address takes one instruction, a 32-bit multiply added to a 64-bit value. The index of copy16_async takes
        three: 16 more instructions in attention's loop over tiles, which has 300.
        """

        def codegen(context, builder, signature, args):
            to = shared_address(context, builder, signature.args[0], args[0], args[1])
            first = builder.gep(data_pointer(context, builder, signature.args[2], args[2]), [args[3]])
            row_bytes = builder.mul(args[5], ir.Constant(I32, signature.args[2].dtype.bitwidth // 8))
            distance = builder.mul(builder.sext(args[4], I64), builder.sext(row_bytes, I64))
            first = builder.addrspacecast(first, first.type.pointee.as_pointer(1))
            source = builder.add(builder.ptrtoint(first, I64), distance)
            inline_ptx(builder, "cp.async.cg.shared.global [$0], [$1], 16;", [], [to, source], touches_memory=True)
            return context.get_dummy_value()

        return types.void(memory, types.uint32, array, types.int64, types.int32, types.int32), codegen
