"""How fast a run is: tokens/s, TFLOP/s of each device, and the share of what the device can do.

FLOPs are counted in two conventions, which differ by up to a tenth: attention in full (PaLM,
appendix B; torchtitan, OLMo-core) and halved for causality (Megatron). Records have the full one;
the summary has both.
"""

from __future__ import annotations

from dataclasses import dataclass

CONVENTION = "6 N + 12 L d S a token: attention in full (PaLM, appendix B)"

# Dense bf16 TFLOP/s by the name that CUDA gives a device, from its maker's data sheet. A device
# that is not here has no MFU rather than a wrong one.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L40S": 362.0,
}


@dataclass(frozen=True)
class Speed:
    """What a run's speed is measured in: FLOPs of a token, forward and backward, in both
    conventions; `peak` TFLOP/s of one device in the run's precision, None where not known."""

    flops_per_token: float
    causal_flops_per_token: float
    devices: int
    peak: float | None

    def of(self, tokens: int, seconds: float) -> dict[str, float | None]:
        """Of a step: tokens/s of all devices, TFLOP/s of one, and its share of the peak."""
        rate = tokens / max(seconds, 1e-9)
        tflops = rate * self.flops_per_token / self.devices / 1e12
        return {
            "tokens_per_second": rate,
            "tflops": tflops,
            "mfu": None if self.peak is None else tflops / self.peak,
        }

    def described(self) -> dict[str, object]:
        """For the header."""
        return {
            "convention": CONVENTION,
            "flops_per_token": self.flops_per_token,
            "causal_flops_per_token": self.causal_flops_per_token,
            "devices": self.devices,
            "peak_tflops": self.peak,
            "peak_source": None if self.peak is None else "data sheet, dense bf16",
        }


def peak(device: str, precision: str) -> float | None:
    """Dense TFLOP/s of a device in bf16 by its maker; None for another precision or device."""
    return PEAKS.get(device) if precision == "bf16" else None
