"""How near devices come to their peaks, by family, and what an engine adds to its kernels. Pure.

Factors of the GPU families are least squares of the log of (predicted / composed) time over the grids that
NVIDIA AIConfigurator 0.12 (Apache-2.0) composes from measured vLLM kernels: 33 decode and 16 prefill points
for each of 74 combinations of device, model, format and parallelism (soft L1; models count equally among the
mixtures of experts; DeepSeek-R1 and Qwen3-235B are left out, whose grids no such law fits). docs/hardware.md
has the error of each combination. The other families are worked from single published figures or assumed;
their origin says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from backends.models.profile import Trust


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of a peak (0 to 1; above 1 where the law's count is an overestimate) and fixed costs."""

    origin: str
    trust: Trust
    weights: float
    """Share of the memory bandwidth at which a step sweeps the weights."""
    kv: float
    """Share of it at which decode attention reads the cache."""
    matmul: float
    """Share of peak FLOPs in prefill."""
    attention: float
    """Share of the 16-bit peak in prefill attention."""
    layer_s: float = 0.0
    """Launches and element-wise work of a layer in a decode step."""
    step_s: float = 0.0
    """Fixed part of a step."""
    prefill_layer_s: float = 0.0
    """As layer_s, in a prefill, which no graph replays."""
    quantised_layer_s: float = 0.0
    """More for each layer when its inputs are quantised first."""
    quantised_matmul: float = 1.0
    """Factor on `matmul` for such formats."""
    quantised_kv: float = 1.0
    """Factor on `kv` for an 8-bit cache."""
    token_compute: float = 0.0
    """Seconds a decoding sequence adds, over the ideal time of its FLOPs."""
    quantised_token_compute: float = 1.0
    """Factor on `token_compute` for such formats."""
    sequence_s: float = 0.0
    """Seconds a decoding sequence adds besides."""
    collective: float = 0.6
    """Share of the scale-up bandwidth in an all-reduce."""
    all_reduce_s: float = 0.0
    """Start of an all-reduce, two of which end each layer, beyond the link's own latency."""
    experts: float = 1.0
    """Share of the memory bandwidth at which a large batch sweeps the routed experts."""
    expert_spread: float = 1.0
    """Tokens at which 63 % of the experts are hit, over (experts / experts a token)."""
    expert_layer_s: float = 0.0
    """Routing and permutation in a layer."""
    expert_sequence_s: float = 0.0
    """More for each sequence in each layer with experts: narrow matrices run far from peak."""
    expert_matmul: float = 0.5
    """As `matmul`, for mixtures of experts."""
    expert_token_s: float = 0.0
    """More for each prompt token in each layer with experts."""
    decode_error: float | None = None
    """Median over the family's grids of the mean absolute error, as a fraction; None without grids."""
    prefill_error: float | None = None


_GRIDS: Final = "fitted to {} grids of AIConfigurator 0.12 ({})"

_HOPPER: Final = {
    "layer_s": 40e-6, "prefill_layer_s": 82e-6, "quantised_layer_s": 17e-6, "all_reduce_s": 6.4e-6,
    "quantised_matmul": 0.79, "quantised_kv": 0.77, "token_compute": 0.85, "quantised_token_compute": 1.53,
    "collective": 0.64, "experts": 1.0, "expert_spread": 1.09, "expert_layer_s": 32e-6,
    "expert_sequence_s": 0.65e-6, "expert_matmul": 0.53, "expert_token_s": 0.05e-6,
}  # fmt: skip
"""What families without grids of their own for it take over: MoE terms, and NVLink's collectives."""

FAMILIES: Final[Mapping[str, Efficiency]] = MappingProxyType(
    {
        "ampere": Efficiency(
            _GRIDS.format(4, "A100, dense; mixtures of experts as hopper"), Trust.COMPOSED,
            decode_error=0.040, prefill_error=0.055, weights=0.75, kv=0.76, matmul=0.78, attention=0.63,
            **_HOPPER
            | {"layer_s": 51e-6, "prefill_layer_s": 125e-6, "all_reduce_s": 7e-6, "token_compute": 0.92,
               "collective": 0.52},
        ),
        "hopper": Efficiency(
            _GRIDS.format(29, "H100, H200"), Trust.COMPOSED,
            decode_error=0.052, prefill_error=0.060, weights=0.90, kv=0.945, matmul=0.735, attention=0.67,
            **_HOPPER,
        ),
        "blackwell": Efficiency(
            _GRIDS.format(28, "B200, B300, GB200, GB300"), Trust.COMPOSED,
            decode_error=0.091, prefill_error=0.107, weights=0.77, kv=0.954, matmul=0.653, attention=0.652,
            **_HOPPER
            | {"layer_s": 25e-6, "prefill_layer_s": 68e-6, "quantised_layer_s": 25e-6, "all_reduce_s": 12e-6,
               "quantised_matmul": 0.69, "quantised_kv": 0.915, "token_compute": 1.0,
               "quantised_token_compute": 1.46, "collective": 0.43, "expert_spread": 1.06,
               "expert_layer_s": 21e-6, "expert_sequence_s": 0.55e-6, "expert_matmul": 0.33,
               "expert_token_s": 0.02e-6},
        ),
        "blackwell-rtx": Efficiency(
            _GRIDS.format(3, "RTX PRO 6000, dense; mixtures of experts as hopper"), Trust.COMPOSED,
            decode_error=0.032, prefill_error=0.037, weights=0.886, kv=0.853, matmul=0.747, attention=0.643,
            **_HOPPER
            | {"layer_s": 33e-6, "prefill_layer_s": 103e-6, "quantised_layer_s": 15e-6,
               "quantised_matmul": 0.81, "quantised_kv": 0.99, "token_compute": 0.75,
               "quantised_token_compute": 1.39, "collective": 0.62},
        ),
        "ada": Efficiency(
            _GRIDS.format(2, "L40S, Llama-3.1-8B on one GPU; the rest as hopper"), Trust.COMPOSED,
            decode_error=0.026, prefill_error=0.048, weights=0.806, kv=0.826, matmul=0.563, attention=0.514,
            **_HOPPER
            | {"layer_s": 38e-6, "prefill_layer_s": 95e-6, "quantised_matmul": 0.69, "quantised_kv": 0.90,
               "token_compute": 0.83, "quantised_token_compute": 1.48},
        ),
        "xe2": Efficiency(
            _GRIDS.format(1, "Arc Pro B60, Llama-3.1-8B on one GPU; the rest as hopper"), Trust.COMPOSED,
            decode_error=0.029, prefill_error=0.058, weights=0.922, kv=0.97, matmul=0.778, attention=0.723,
            **_HOPPER | {"layer_s": 39e-6, "prefill_layer_s": 88e-6, "token_compute": 0.76},
        ),
        "cdna3": Efficiency(
            "H200's times for a 70B model, prefill slowed by MLPerf 5.1 offline throughput (4,415 / 3,482 "
            "tokens/s), over MI300X's peaks; no latency table of MI300X is public", Trust.GUESSED,
            weights=0.75, kv=0.62, matmul=0.50, attention=0.40,
            **_HOPPER | {"layer_s": 38e-6, "quantised_kv": 1.0, "token_compute": 1.0, "collective": 0.5},
        ),
        "tpu": Efficiency(
            "v6e operators measured by LLMServingSim (weights at 0.82 of the bandwidth, prefill at 0.73 of "
            "the peak), lowered to 0.80 and 0.65 for a whole step; KV at 0.60 lies between the 0.48 "
            "measured of an early-2025 kernel and later ones; prefill attention assumed likewise",
            Trust.GUESSED,
            weights=0.80, kv=0.60, matmul=0.65, attention=0.15, step_s=1e-3, sequence_s=30e-6,
            expert_matmul=0.40,
        ),
        "trainium": Efficiency(
            "assumed from specifications alone: no serving curve is public", Trust.GUESSED,
            weights=0.65, kv=0.50, matmul=0.45, attention=0.15, step_s=2e-3, sequence_s=50e-6,
            expert_matmul=0.30,
        ),
        "groq-v1": Efficiency(
            "45 us a layer: three published single-stream speeds of the cloud give 40 (8B), 45 (70B) and 58 "
            "(gpt-oss-120b); constant until the slots are full; prefill is a guess", Trust.GUESSED,
            weights=1.0, kv=1.0, matmul=0.10, attention=0.10, layer_s=45e-6,
        ),
        "groq-lpx": Efficiency(
            "no measurement is public. 9 us a layer: two hops of 3.5 us (2-5 is plausible) and 2 us in the "
            "FFN; the weights take below 1 us; FLOPs at 0.4 of the peak", Trust.GUESSED,
            weights=0.40, kv=0.40, matmul=0.40, attention=0.40, layer_s=9e-6, token_compute=2.5,
            expert_matmul=0.40,
        ),
        "wafer": Efficiency(
            "17 us a layer: published speeds of the cloud give 17 (8B) and 16 (gpt-oss-120b), 28 for the 70B "
            "launch figure; prefill of 1-5 ms per 1k tokens is a guess", Trust.GUESSED,
            weights=1.0, kv=1.0, matmul=0.06, attention=0.06, layer_s=17e-6, expert_matmul=0.06,
        ),
        "xdna2": Efficiency(
            "FastFlowLM's documented speeds of three Llama models: weights at 0.27-0.29 and KV at "
            "0.29-0.37 of the shared bandwidth; prefill from 413 tokens/s reported for a 20B model",
            Trust.REPORTED,
            weights=0.28, kv=0.36, matmul=0.16, attention=0.16,
        ),
        "intel-npu": Efficiency(
            "6.1 tokens/s for an 8B model in int4 (OpenVINO hub); MLPerf Client's 18.6 for a 7B disagrees "
            "threefold; prefill from its 1.09 s for a prompt padded to 1k; KV assumed", Trust.REPORTED,
            weights=0.20, kv=0.25, matmul=0.26, attention=0.26,
        ),
        "hexagon": Efficiency(
            "two pages disagree (10 and 24 tokens/s for an 8B model in 4 bits); their geometric mean; "
            "prefill from one of them; KV assumed", Trust.GUESSED,
            weights=0.48, kv=0.40, matmul=0.26, attention=0.26,
        ),
        "ane": Efficiency(
            "9.3 tokens/s (8B) and 62 (1B) of ANEMLL; both come to about 40 GB/s whatever the chip's "
            "bandwidth; prefill and KV assumed", Trust.REPORTED,
            weights=0.33, kv=0.33, matmul=0.40, attention=0.40,
        ),
        "fixed": Efficiency(
            "none: the weights are wired in, so the anchor of the one model is all there is; prefill is "
            "taken to cost as much a token as decode", Trust.GUESSED,
            weights=1.0, kv=1.0, matmul=1.0, attention=1.0,
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Engine:
    """What a serving engine adds to the kernels it runs."""

    origin: str
    kernels: float = 1.0
    """Factor on the kernels' time in a step."""
    prefill: float = 1.0
    """Factor on the time of a prompt token."""
    step_s: float = 0.0
    """Host work of a step."""
    sequence_s: float = 0.0
    """Host work of a sequence in a step."""
    pcie_all_reduce_s: float = 0.0
    """More for each all-reduce over PCIe."""
    pcie_collective: float = 1.0
    """Factor on the share of PCIe bandwidth in an all-reduce."""


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        "kernels": Engine("kernels alone, no engine around them: 8-25 % faster than serving"),
        "vllm": Engine(
            "vLLM 0.19 serving ShareGPT, over its kernels: +0.5 ms a step, +10 us a sequence, prompt "
            "tokens x1.13 (Llama-3.1-8B on one RTX PRO 6000); +45 us an all-reduce over PCIe at half the "
            "bandwidth share (Qwen3-32B on two)",
            prefill=1.13, step_s=0.5e-3, sequence_s=10e-6, pcie_all_reduce_s=45e-6, pcie_collective=0.5,
        ),
        "trtllm": Engine(
            "TensorRT-LLM beside vLLM's kernels on Llama-3.1-70B (InferenceX): 0.82 of the time",
            kernels=0.82, prefill=0.82,
        ),
    }
)  # fmt: skip
