"""How numbers are quantized for one target: what profiles state, the engine inserts and the network format stores."""

from typing import Literal

from pydantic import BaseModel, Field


class Scheme(BaseModel, extra="forbid", frozen=True):
    """One numeric scheme. Weights are always symmetric with zero point 0, in int8 tensors within ±(2^(bits-1) - 1)."""

    activation_bits: int = Field(8, ge=2, le=8, description="bits of the activations")
    activation_signed: bool = Field(False, description="int8 activations instead of uint8")
    activation_symmetric: bool = Field(False, description="zero point fixed (0 for signed)")
    weight_bits: int = Field(7, ge=2, le=8, description="bits of the weights; 7 avoids the 16-bit saturation of x86 without VNNI")
    weight_granularity: Literal["per-channel", "per-tensor"] = "per-channel"


class QuantizationPlan(BaseModel, extra="forbid", frozen=True):
    """What the engine did to a network, enough to do the same again: the scheme and where quantizers stand."""

    scheme: Scheme
    quantizers: tuple[str, ...] = Field(description="names of the fake-quant modules in graph order; compared on rebuilding")
    batch_norm: Literal["live", "folded"] = Field("folded", description="live only inside training; a finished twin is folded")
