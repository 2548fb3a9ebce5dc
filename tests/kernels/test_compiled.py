"""What Triton's compiler makes of the row kernels, for GPUs that are not here: registers, spills, and their loops."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mipo.kernels import row_kernels, row_state

pytestmark = pytest.mark.skipif(
    row_kernels.triton is None or os.environ.get("TRITON_INTERPRET") == "1", reason="needs the Triton compiler"
)
FOLD, GRADIENT = "_fold_kernel", "_gradient_kernel"
FLAGS = {FOLD: ("HAS_BIAS", "HAS_SOFTCAP", "STATISTICS", "RESUME", "WRITE_G", "SHARES"),
         GRADIENT: ("HAS_BIAS", "HAS_SOFTCAP", "ENTROPY")}  # fmt: skip
EVERYTHING = {"HAS_BIAS", "HAS_SOFTCAP"}
# Kernel, dtypes of logits and G, flags. The widest use of registers has everything on; bf16 makes the widest vectors.
COMPILED = [
    (FOLD, "bf16", "bf16", {"WRITE_G"}),  # M1 to M3
    (FOLD, "bf16", "bf16", {"STATISTICS", "WRITE_G"}),
    (FOLD, "bf16", "bf16", EVERYTHING | {"STATISTICS", "RESUME", "WRITE_G", "SHARES"}),  # M1 in tiles
    (FOLD, "bf16", "bf16", EVERYTHING | {"STATISTICS", "WRITE_G"}),
    (FOLD, "fp32", "bf16", EVERYTHING | {"STATISTICS", "WRITE_G"}),
    (FOLD, "fp32", "fp32", set()),  # M0
    (FOLD, "fp32", "fp32", {"STATISTICS"}),
    (FOLD, "bf16", "bf16", EVERYTHING | {"STATISTICS", "RESUME"}),  # M4, forward and backward
    (GRADIENT, "bf16", "bf16", EVERYTHING),
    (GRADIENT, "bf16", "bf16", EVERYTHING | {"ENTROPY"}),
]
# Lanes meet after the loop: maxima and sums are a reduction each, of three barriers together; and the last logit of the
# row is read before the first G is written.
BARRIERS = {FOLD: 4, GRADIENT: 0}


@dataclass(frozen=True)
class Compiled:
    """A kernel's PTX, and from the ptxas that Triton brings its registers per thread and bytes spilled."""

    ptx: str
    registers: int
    spills: int

    @property
    def loops(self) -> list[str]:
        """The innermost loops: what lies between a label and the branch back to it."""
        found = [(m[1], m.end()) for m in re.finditer(r"(\$L__BB\d+_\d+):", self.ptx)]
        back = [(m[1], m.start()) for m in re.finditer(r"bra(?:\.uni)?\s+(\$L__BB\d+_\d+);", self.ptx)]
        return [self.ptx[start:end] for label, start in found for name, end in back if name == label and end > start]


@pytest.fixture(params=[80, 89, 90, 100])
def capability(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # Triton 3.9 warns that this default will change.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    return request.param


def test_kernels_fit_and_their_loops_wait_for_nobody(capability: int, tmp_path: Path) -> None:
    """Two programs fit a multiprocessor; in a loop a thread reads 16 bytes at a time and asks no other thread."""
    for name, z, g, on in COMPILED:
        compiled = compile_kernel(name, capability, z, g, on, tmp_path)
        about = f"{name}, {z}, {sorted(on)}"
        assert compiled.spills == 0, about
        assert compiled.registers <= row_kernels.REGISTERS, about
        assert compiled.ptx.count("bar.sync") <= BARRIERS[name], about
        assert len(compiled.loops) == (name == FOLD) + (name == GRADIENT or "WRITE_G" in on), about
        for loop in compiled.loops:
            assert not re.search(r"bar\.sync|shfl|\.shared", loop), about
            assert re.search(r"ld\.global[\w.:]*\.v4\.b32", loop), about


def compile_kernel(name: str, capability: int, z: str, g: str, on: set[str], folder: Path) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    kernel = getattr(row_kernels, name)
    columns = row_state.WITH_STATISTICS if on & {"STATISTICS", "ENTROPY"} else row_state.ALONE
    per_lane = row_kernels.LANE_BYTES // {"bf16": 2, "fp32": 4}[z]
    constants: dict[str, Any] = {flag: flag in on for flag in FLAGS[name]}
    constants |= {"STATE": columns, "LANES": 32 * row_kernels.NUM_WARPS, "PER_LANE": per_lane}
    types = {"z_ptr": f"*{z}", "g_ptr": f"*{g}", "targets_ptr": "*i64", "bias_ptr": "*bf16"}
    types |= dict.fromkeys(("state_ptr", "weights_ptr"), "*fp32") | dict.fromkeys(("scale", "softcap", "inv_t"), "fp32")
    types |= dict.fromkeys(constants, "constexpr")
    # As the launcher would find them: aligned pointers, but for targets, state and weights; strides and words, in
    # multiples of 16.
    wide = ("z_ptr", "g_ptr", "bias_ptr", "z_stride", "g_stride", "first", "n_cols", "width")
    aligned = {(i,): [["tt.divisibility", 16]] for i, argument in enumerate(kernel.arg_names) if argument in wide}
    source = ASTSource(kernel, {x: types.get(x, "i32") for x in kernel.arg_names}, constants, aligned)
    options = {"num_warps": row_kernels.NUM_WARPS, "maxnreg": row_kernels.REGISTERS}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = folder / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    architecture = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
    command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", ptx, "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    return Compiled(compiled.asm["ptx"], registers, sum(map(int, re.findall(r"(\d+) bytes spill", report))))
