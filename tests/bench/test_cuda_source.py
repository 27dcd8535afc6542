"""A user's CUDA file: which kernels are taken, what is said of the others, and what its expressions may do."""

import shutil
import subprocess

import pytest
import torch
from inputs.command_line import ROOT

from bench.plugins.cuda_source import CudaSource, Expression, SourceError

EXAMPLE = ROOT / "examples" / "gqa_decode_plugin.cu"
INT4_EXAMPLE = ROOT / "examples" / "int4_gemv.cu"
SIZES = {"batch": 2, "n_heads": 28, "n_kv_heads": 4, "head_dim": 128, "max_len": 300}
HEADER = "// launchtax: op=gqa_decode grid=n_heads,batch block=128\n"
KERNEL = 'extern "C" __global__ void mine(const __nv_bfloat16* q, __nv_bfloat16* out, int max_len, float scale) {}\n'


def test_the_example():
    source = CudaSource.read(EXAMPLE, "gqa_decode")
    assert (source.op, source.dtype) == ("gqa_decode", torch.bfloat16)
    names = ["q", "k_cache", "v_cache", "kv_len", "out", "n_heads", "n_kv_heads", "max_len", "scale"]
    assert source.parameters == names
    launch = source.launch(SIZES)
    assert (launch.grid, launch.block, launch.shared_bytes) == ((28, 2), (256,), 0)
    assert source.unmet(SIZES) is None
    words = "requires head_dim==64 or head_dim==128, and head_dim is 72"
    assert source.unmet(SIZES | {"head_dim": 72}) == words
    assert {"-DHEAD_DIM=128", "-DGROUP=7", "-DMAX_LEN=300"} <= set(source.macros(SIZES))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_example_compiles(tmp_path, head_dim):
    assert_compiles(tmp_path, EXAMPLE, "sm_80", CudaSource.read(EXAMPLE, "gqa_decode"), SIZES | {"head_dim": head_dim})


def assert_compiles(tmp_path, path, arch, source, sizes):
    command = ["nvcc", "-cubin", f"-arch={arch}", "-std=c++17", *source.macros(sizes), "-Werror=all-warnings"]
    result = subprocess.run([*command, "-o", tmp_path / "x.cubin", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


INT4_SIZES = {"batch": 3, "n_in": 4096, "n_out": 130, "group_size": 64}


def test_the_4_bit_example():
    source = CudaSource.read(INT4_EXAMPLE, "int4_gemv")
    assert (source.op, source.dtype) == ("int4_gemv", torch.bfloat16)
    assert source.parameters == ["x", "packed", "scales", "zeros", "out", "n_out"]
    launch = source.launch(INT4_SIZES)
    assert (launch.grid, launch.block, launch.shared_bytes) == ((33, 3), (128,), 0)
    assert set(source.macros(INT4_SIZES)) == {
        "-DBATCH=3", "-DN_IN=4096", "-DN_OUT=130", "-DGROUP_SIZE=64", "-DN_GROUPS=64",
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("arch", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("group_size", [32, 4096])
def test_the_4_bit_example_compiles(tmp_path, arch, group_size):
    source = CudaSource.read(INT4_EXAMPLE, "int4_gemv")
    assert_compiles(tmp_path, INT4_EXAMPLE, arch, source, INT4_SIZES | {"group_size": group_size})


INT4_HEADER = "// launchtax: op=int4_gemv grid=n_out,batch block=32 require=batch<=2\n"
INT4_KERNEL = (
    'extern "C" __global__ void mine(const __nv_bfloat16* x, const uint4* packed, const __nv_bfloat16* scales,\n'
    "    const unsigned char* zeros, const int* perm, __nv_bfloat16* out, int n_in) {}\n"
)


@pytest.mark.parametrize("kind", ["unsigned", "unsigned char", "uint8_t", "uint32_t", "uint2", "uint4"])
def test_packed_is_bytes_words_or_vectors_of_them(kind):
    text = INT4_HEADER + INT4_KERNEL.replace("const uint4*", f"const {kind} *")
    assert CudaSource.parse(text, "mine").parameters == ["x", "packed", "scales", "zeros", "perm", "out", "n_in"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("const uint4* packed", "const float* packed"), "must be const unsigned char* or uint8_t* or unsigned* or"),
        (("const uint4* packed", "int packed"), "`int packed` must be const unsigned char*"),
        (("unsigned char* zeros", "int* zeros"), "`const int* zeros` must be const unsigned char* or uint8_t* zeros"),
        (("int n_in", "int n_groups"), "int4_gemv has no parameter n_groups: it has x, scales, packed, zeros, perm,"),
        (("n_out,batch", "n_heads,batch"), "names n_heads, and the sizes are batch, n_in, n_out, group_size, n_groups"),
    ],
)  # fmt: skip
def test_what_is_no_4_bit_kernel(change, words):
    with pytest.raises(SourceError) as error:
        CudaSource.parse((INT4_HEADER + INT4_KERNEL).replace(*change), "mine")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4*head_dim*group", 4 * 128 * 7),
        ("ceil_div(max_len, 256)", 2),
        ("min(max_len, 64) + max(1, batch)", 66),
        ("(max_len - 1) // 128 % 2", 0),
        ("head_dim <= 128 and batch != 2", 0),
        ("head_dim == 64 or n_heads > 3", 1),
    ],
)
def test_expressions(text, value):
    assert Expression(text, [*SIZES, "group"])(SIZES | {"group": 7}) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("__import__('os').system('true')", "must be made of"),
        ("head_dim.bit_length()", "must be made of"),
        ("[1][0]", "must be made of"),
        ("(lambda: 1)()", "must be made of"),
        ("2**64", "must be made of"),
        ("head_dim / 2", "must be made of"),
        ("1 < batch < 3", "must be made of"),
        ("True", "must be made of"),
        ("1.5", "must be made of"),
        ("min(1)", "must be made of"),
        ("heads", "names heads, and the sizes are batch"),
        ("", "nothing is no expression"),
        ("4 *", "is no expression"),
        ("1" + "+1" * 100, "at most 200 characters"),
    ],
)
def test_what_is_no_expression(text, words):
    with pytest.raises(SourceError) as error:
        Expression(text, list(SIZES))
    assert words in str(error.value)


def test_a_division_by_zero():
    with pytest.raises(SourceError, match=r"max_len//\(batch-2\) divides by zero where batch is 2, max_len is 300"):
        Expression("max_len//(batch-2)", list(SIZES))(SIZES)


def test_the_kernel_is_found_among_others():
    other = KERNEL.replace("mine", "other").replace("float scale", "float scale, int batch")
    lines = "// launchtax: op=gqa_decode\n// more about it\n// launchtax: grid=n_heads,batch block=128\n"
    text = f"/* __global__ void mine(int x) */\n{HEADER}{KERNEL}\n{lines}{other}"
    assert CudaSource.parse(text, "mine").parameters == ["q", "out", "max_len", "scale"]
    assert CudaSource.parse(text, "other").parameters == ["q", "out", "max_len", "scale", "batch"]


@pytest.mark.parametrize(
    "kernel",
    [
        KERNEL.replace("void mine", "void __launch_bounds__(128) mine"),
        KERNEL.replace("void mine", "__launch_bounds__(128, 2) void mine"),
        KERNEL.replace("__nv_bfloat16*", "bf16 *"),
        KERNEL.replace("* q", "* __restrict__ q").replace("* out", "*__restrict__ out"),
        KERNEL.replace("const __nv_bfloat16*", "__nv_bfloat16 const*").replace("int max_len", "const int max_len"),
        KERNEL.replace("(const", "(  // the query\n    const"),
    ],
)
def test_ways_to_write_a_kernel(kernel):
    assert CudaSource.parse(HEADER + kernel, "mine").parameters == ["q", "out", "max_len", "scale"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no __global__ mine: it has no kernels"),
        (HEADER + KERNEL.replace("mine", "other"), "has no __global__ mine: it has other"),
        (HEADER + KERNEL.replace('extern "C" ', ""), 'mine must be declared extern "C"'),
        (KERNEL, "mine has no line `// launchtax:"),
        (HEADER + KERNEL.replace("mine", "other") + KERNEL, "mine has no line `// launchtax:"),
        (HEADER.replace("block=128", "") + KERNEL, "lacks block="),
        (HEADER.replace("gqa_decode", "attention") + KERNEL, "of gqa_decode, gemv, int4_gemv, got attention"),
        (HEADER.replace("block", "dtype=int8 block") + KERNEL, "dtype must be one of bf16, fp16, fp32, got int8"),
        (HEADER.replace("block", "block=1 block") + KERNEL, "each once"),
        (HEADER.replace("op=", "kernel=mine op=") + KERNEL, "must be of op, dtype, grid, block, shared, require, pdl"),
        (HEADER.replace("op=", "pdl=yes op=") + KERNEL, "pdl must be one of 0, 1, got yes"),
        (HEADER.replace("n_heads,", "heads,") + KERNEL, "names heads"),
        (HEADER.replace("grid=", "grid=1,1,") + KERNEL, "grid must have one to three parts"),
        (HEADER + KERNEL.replace("int max_len", "int ctx"), "gqa_decode has no parameter ctx: it has q, k_cache"),
        (HEADER + KERNEL.replace("int max_len", "long max_len"), "`long max_len` must be int max_len"),
        (HEADER + KERNEL.replace("float scale", "double scale"), "`double scale` must be float scale"),
        (HEADER + KERNEL.replace("float scale", "float* scale"), "`float* scale` must be float scale"),
        (HEADER + KERNEL.replace("const __nv_bfloat16* q", "const float* q"), "must be const __nv_bfloat16* q"),
        (HEADER + KERNEL.replace("__nv_bfloat16* out", "const __nv_bfloat16* out"), "must be __nv_bfloat16* out"),
        (HEADER + KERNEL.replace("int max_len", "const float* kv_len"), "must be const int* or int32_t* kv_len"),
        (HEADER + KERNEL.replace("__nv_bfloat16* out, ", ""), "must have a parameter out"),
        (HEADER + KERNEL.replace("int max_len", "__nv_bfloat16* q"), "each parameter once"),
        (HEADER + KERNEL.replace("float scale", "dim3 a[2]"), "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_refused(text, words):
    with pytest.raises(SourceError) as error:
        CudaSource.parse(text, "mine")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("block=1024,2", "block must be of 1..1024 threads, got 1024 x 2"),
        ("block=batch-2", "block must be of 1..1024 threads, got 0"),
        ("block=32 shared=max_len*1024", "shared must be in 0..232448 bytes, got 307200"),
    ],
)
def test_a_launch_that_fits_no_device(header, words):
    source = CudaSource.parse(HEADER.replace("block=128", header) + KERNEL, "mine")
    with pytest.raises(SourceError, match=words):
        source.launch(SIZES)


def test_a_grid_that_fits_no_device():
    source = CudaSource.parse(HEADER.replace(",batch", ",max_len*1024") + KERNEL, "mine")
    with pytest.raises(SourceError, match="grid must be of .* blocks, got 28 x 307200"):
        source.launch(SIZES)
