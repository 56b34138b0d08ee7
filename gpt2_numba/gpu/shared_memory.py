"""A block's shared memory as one array of bytes, filled by asynchronous copies and read in the tensor cores' layout.

    memory = shared_bytes()                          # all of it; the kernel divides it up by fixed byte offsets
    copy16_async(memory, offset, array, index)       # start a copy of 16 bytes from global memory: no register, no wait
    commit_copies()                                  # ... the copies started so far are a group
    wait_for_copies(0)                               # ... until at most 0 groups of this thread are in flight
    cuda.syncthreads()                               # ... and the other threads' copies have arrived as well

Kernels that work on eight elements at a time, whatever their type, count elements instead of bytes:

    elements = shared_elements(inp)                  # the same memory as an array of the type of `inp`
    copy8_async(elements, position, inp, index)
    load8(elements, position, x)

Offsets are uint32 and count bytes; positions and indices are int64 and count an array's elements in C order. All must be multiples of the
size moved.

The twins for the simulator are strict: the target of a copy is 0xFF (NaN) from the start of the copy until the wait, so a thread that reads
too early, or starts a copy while others still read, causes a NaN. All shared memory is NaN when a block starts.
"""

import numpy as np
from numba import types
from numba.cuda.extending import intrinsic

from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, compute_stream, gpu_available
from gpt2_numba.gpu.memory_access import WIDTH

DEFAULT_SHARED_BYTES = 48 << 10  # per block; to use more, the kernel's limit must be raised first

if SIMULATING:
    import threading

    from gpt2_numba.gpu.simulator import dynamic_shared_memory, elements_of, elements_read, install, meet_warp

    install()

    def shared_bytes():
        """The block's dynamic shared memory, as an array of uint8. Twin for the simulator."""
        return dynamic_shared_memory()

    def _bytes(memory, offset, count):
        if offset % count or offset < 0 or offset + count > memory.size:
            raise IndexError(f"{count} bytes at byte {offset} of {memory.size} of shared memory: misaligned or out of bounds")
        return memory[offset : offset + count]

    def _elements(array, index, nbytes):
        flat = elements_of(array)
        count = nbytes // flat.itemsize
        if index % count or index < 0 or index + count > flat.size:
            raise IndexError(f"{count} elements at index {index} of {flat.size}: misaligned or out of bounds")
        return flat[index : index + count].view(np.uint8)

    def _copy_async(memory, offset, array, index, nbytes):
        target, source = _bytes(memory, offset, nbytes), _elements(array, index, nbytes)
        target[:] = 0xFF
        elements_read(source)
        threading.current_thread().copies[-1].append((target, source))

    def copy16_async(memory, offset, array, index):
        """Copy 16 bytes of `array` from element `index` to byte `offset` of shared memory. Twin for the simulator."""
        _copy_async(memory, offset, array, index, 16)

    def shared_elements(array):
        """The block's dynamic shared memory, as an array of the type of `array`. Twin for the simulator."""
        return dynamic_shared_memory().view(elements_of(array).dtype)

    def copy8_async(elements, position, array, index):
        """Copy eight elements of `array` from `index` to `position` of `elements`. Twin for the simulator."""
        _copy_async(elements.view(np.uint8), position * elements.itemsize, array, index, WIDTH * elements.itemsize)

    def copy4_async(memory, offset, array, index):
        """Copy 4 bytes of `array` from element `index` to byte `offset` of shared memory. Twin for the simulator."""
        _copy_async(memory, offset, array, index, 4)

    def commit_copies():
        """Make this thread's copies since the last call a group. Twin for the simulator."""
        threading.current_thread().copies.append([])

    def wait_for_copies(left):
        """Wait until at most `left` of this thread's groups are in flight. Twin for the simulator."""
        groups = threading.current_thread().copies  # the last one is not committed yet
        while len(groups) - 1 > left:
            for target, source in groups.pop(0):
                target[:] = elements_read(source)

    def sync_warp():
        """Wait for the other 31 threads of the warp. Twin for the simulator."""
        threading.current_thread().sync_warp()

    def _matrices(memory, offset):
        """ldmatrix: each lane gives the offset of one row of eight. Returns the four 8 x 8 matrices of 16-bit elements."""
        rows = meet_warp(elements_read(_bytes(memory, offset, 16)), np.stack)
        return rows.view(np.uint16).reshape(4, 8, 8)

    def _pairs(matrices):
        row, column = divmod(threading.current_thread().thread_id % 32, 4)
        return tuple(matrices[:, row, 2 * column : 2 * column + 2].astype("<u2").copy().view("<u4")[:, 0])

    def load_matrices(memory, offset):
        """Load four 8 x 8 matrices of 16-bit elements, two elements of each per lane. Twin for the simulator."""
        return _pairs(_matrices(memory, offset))

    def load_matrices_transposed(memory, offset):
        """Load four 8 x 8 matrices of 16-bit elements, transposed, two elements of each per lane. Twin for the simulator."""
        return _pairs(_matrices(memory, offset).swapaxes(1, 2))

    def store32(memory, offset, word):
        """Store a uint32. Twin for the simulator."""
        _bytes(memory, offset, 4).view(np.uint32)[0] = word

    def load32_float(memory, offset):
        """Load a float32. Twin for the simulator."""
        return _bytes(memory, offset, 4).view(np.float32)[0]

    def load128(memory, offset):
        """Load four uint32. Twin for the simulator."""
        return tuple(elements_read(_bytes(memory, offset, 16)).view(np.uint32))

    def store128(memory, offset, first, second, third, fourth):
        """Store four uint32. Twin for the simulator."""
        _bytes(memory, offset, 16).view(np.uint32)[:] = first, second, third, fourth

    def copy16_out(array, index, memory, offset):
        """Copy 16 bytes from byte `offset` of shared memory to element `index` of `array`. Twin for the simulator."""
        _elements(array, index, 16)[:] = elements_read(_bytes(memory, offset, 16))

    def max_shared_bytes():
        """Maximum dynamic shared memory of a block, in bytes. Little in the simulator, so that small arrays exceed it, too."""
        return 2 << 10

    def raise_shared_memory_limit(kernel, nbytes, args):
        """Does nothing: the simulator has no limit."""

else:
    from llvmlite import ir
    from numba import cuda, uint8

    from gpt2_numba.gpu.inline_ptx import I32, data_pointer, global_address, inline_ptx, shared_address

    @cuda.jit(device=True, inline="always")
    def shared_bytes():
        """The block's dynamic shared memory, as an array of uint8 that starts at a multiple of 1,024 bytes."""
        return cuda.shared.array(0, uint8, alignment=1024)

    @intrinsic
    def copy16_async(typingctx, memory, offset, array, index):
        """Copy 16 bytes of `array` from element `index` to byte `offset` of shared memory, bypassing the L1 cache.

        PTX ISA: cp.async.cg.shared.global.
        """
        return types.void(memory, types.uint32, array, types.int64), _copy_async("cp.async.cg.shared.global [$0], [$1], 16;")

    def _has_async_copies():
        """Decided at compile time. GPUs before Ampere copy synchronously: correct for threads that read only what they copied themselves."""
        return bfloat16_supported() or not gpu_available()

    @cuda.jit(device=True, inline="always")
    def shared_elements(array):
        """The block's dynamic shared memory, as an array of the type of `array`, for load8 and store8."""
        return cuda.shared.array(0, array.dtype, alignment=1024)

    @intrinsic
    def copy8_async(typingctx, elements, position, array, index):
        """Copy eight elements of `array` from `index` to `position` of `elements` (of shared_elements): 16 or 32 bytes."""

        def codegen(context, builder, signature, args):
            elements_type, _, array_type, _ = signature.args
            nbytes = array_type.dtype.bitwidth // 8
            offset = builder.mul(builder.trunc(args[1], I32), ir.Constant(I32, nbytes))
            to = shared_address(context, builder, elements_type, args[0], offset)
            source = global_address(context, builder, array_type, args[2], args[3])
            for start in range(0, WIDTH * nbytes, 16):
                if _has_async_copies():
                    instruction = f"cp.async.cg.shared.global [$0 + {start}], [$1 + {start}], 16;"
                else:
                    load, store = f"ld.global.v4.b32 {{a, b, c, d}}, [$1 + {start}];", f"st.shared.v4.b32 [$0 + {start}], {{a, b, c, d}};"
                    instruction = f"{{ .reg .b32 a, b, c, d; {load} {store} }}"
                inline_ptx(builder, instruction, [], [to, source], touches_memory=True)
            return context.get_dummy_value()

        return types.void(elements, types.int64, array, types.int64), codegen

    @intrinsic
    def copy4_async(typingctx, memory, offset, array, index):
        """Copy 4 bytes of `array` from element `index` to byte `offset` of shared memory. PTX ISA: cp.async.ca.shared.global."""
        return types.void(memory, types.uint32, array, types.int64), _copy_async("cp.async.ca.shared.global [$0], [$1], 4;")

    def _copy_async(instruction):
        def codegen(context, builder, signature, args):
            to = shared_address(context, builder, signature.args[0], args[0], args[1])
            source = global_address(context, builder, signature.args[2], args[2], args[3])
            inline_ptx(builder, instruction, [], [to, source], touches_memory=True)
            return context.get_dummy_value()

        return codegen

    @intrinsic
    def commit_copies(typingctx):
        """Make this thread's copies since the last call a group. PTX ISA: cp.async.commit_group."""

        def codegen(context, builder, signature, args):
            if _has_async_copies():
                inline_ptx(builder, "cp.async.commit_group;", [], [], touches_memory=True)
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def wait_for_copies(typingctx, left):
        """Wait until at most `left` (a constant) of this thread's groups are in flight. PTX ISA: cp.async.wait_group."""
        if not isinstance(left, types.IntegerLiteral):
            return None  # Numba tries again, with the constant

        def codegen(context, builder, signature, args):
            if _has_async_copies():
                inline_ptx(builder, f"cp.async.wait_group {left.literal_value};", [], [], touches_memory=True)
            return context.get_dummy_value()

        return types.void(left), codegen

    @cuda.jit(device=True, inline="always")
    def sync_warp():
        """Wait for the other 31 threads of the warp. What they wrote to shared memory before is then visible."""
        cuda.syncwarp()

    def _load(instruction, results, numba_type):
        def codegen(context, builder, signature, args):
            address = shared_address(context, builder, signature.args[0], args[0], args[1])
            values = inline_ptx(builder, instruction, results, [address], touches_memory=True)
            return values[0] if len(values) == 1 else context.make_tuple(builder, signature.return_type, values)

        def typing(memory):
            return numba_type(memory, types.uint32), codegen

        return typing

    _FOUR_WORDS = types.UniTuple(types.uint32, 4)
    _load_matrices = _load("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];", [I32] * 4, _FOUR_WORDS)
    _load_transposed = _load("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0, $1, $2, $3}, [$4];", [I32] * 4, _FOUR_WORDS)
    _load_float = _load("ld.shared.b32 $0, [$1];", [ir.FloatType()], types.float32)
    _load_words = _load("ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", [I32] * 4, _FOUR_WORDS)

    @intrinsic
    def load_matrices(typingctx, memory, offset):
        """Load four 8 x 8 matrices of 16-bit elements from shared memory, as four uint32 per lane. All 32 lanes of a warp must call it.

        A row of a matrix is 16 bytes, at any multiple of 16: lane 8 k + r passes the offset of row r of matrix k. Word k of lane
        4 r + c then holds elements 2 c (low half) and 2 c + 1 of row r of matrix k. PTX ISA: ldmatrix.sync.aligned.m8n8.x4.
        """
        return _load_matrices(memory)

    @intrinsic
    def load_matrices_transposed(typingctx, memory, offset):
        """load_matrices with each matrix transposed: word k of lane 4 r + c holds element r of rows 2 c (low half) and 2 c + 1 of matrix k.

        PTX ISA: ldmatrix.sync.aligned.m8n8.x4.trans.
        """
        return _load_transposed(memory)

    @intrinsic
    def load32_float(typingctx, memory, offset):
        """Load a float32 from shared memory."""
        return _load_float(memory)

    @intrinsic
    def store32(typingctx, memory, offset, word):
        """Store a uint32 to shared memory."""

        def codegen(context, builder, signature, args):
            address = shared_address(context, builder, signature.args[0], args[0], args[1])
            inline_ptx(builder, "st.shared.b32 [$0], $1;", [], [address, args[2]], touches_memory=True)
            return context.get_dummy_value()

        return types.void(memory, types.uint32, types.uint32), codegen

    @intrinsic
    def load128(typingctx, memory, offset):
        """Load four uint32 from shared memory, in one instruction."""
        return _load_words(memory)

    @intrinsic
    def store128(typingctx, memory, offset, first, second, third, fourth):
        """Store four uint32 to shared memory, in one instruction."""

        def codegen(context, builder, signature, args):
            address = shared_address(context, builder, signature.args[0], args[0], args[1])
            inline_ptx(builder, "st.shared.v4.b32 [$0], {$1, $2, $3, $4};", [], [address, *args[2:]], touches_memory=True)
            return context.get_dummy_value()

        return types.void(memory, types.uint32, *[types.uint32] * 4), codegen

    @intrinsic
    def copy16_out(typingctx, array, index, memory, offset):
        """Copy 16 bytes from byte `offset` of shared memory to element `index` of `array`: one load, one store."""

        def codegen(context, builder, signature, args):
            address = shared_address(context, builder, signature.args[2], args[2], args[3])
            load = "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];"
            words = inline_ptx(builder, load, [I32] * 4, [address], touches_memory=True)
            vector = ir.Constant(ir.VectorType(I32, 4), ir.Undefined)
            for k, word in enumerate(words):
                vector = builder.insert_element(vector, word, ir.Constant(I32, k))
            element = builder.gep(data_pointer(context, builder, signature.args[0], args[0]), [args[1]])
            builder.store(vector, builder.bitcast(element, vector.type.as_pointer()), align=16)
            return context.get_dummy_value()

        return types.void(array, types.int64, memory, types.uint32), codegen

    def max_shared_bytes():
        """Maximum dynamic shared memory of a block on this GPU, in bytes, less 1 KB for a kernel's static arrays."""
        return cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN - 1024

    _raised = {}  # (kernel, signature) -> bytes: it is never lowered, since recorded launches may need the larger one

    def raise_shared_memory_limit(kernel, nbytes, args):
        """Allow blocks of `kernel`, compiled for the types of `args`, to have `nbytes` of dynamic shared memory."""
        from numba.cuda.cudadrv.driver import binding, driver

        signature = tuple(kernel.typeof_pyval(arg) for arg in args)
        if nbytes <= _raised.get((kernel, signature), 0):
            return
        function = kernel.compile(signature)._codelibrary.get_cufunc()
        limit = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.cuKernelSetAttribute(limit, nbytes, function.handle, function.device.id)
        _raised[kernel, signature] = nbytes


def launch_with_shared_memory(kernel, grid, threads, nbytes, *args):
    """kernel[grid, threads](*args) on the compute stream, each block with `nbytes` of dynamic shared memory."""
    if nbytes > DEFAULT_SHARED_BYTES:
        raise_shared_memory_limit(kernel, nbytes, args)
    kernel[grid, threads, compute_stream(), nbytes](*args)
