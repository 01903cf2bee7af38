"""How numbers are quantized for one target: what profiles state, the engine inserts and the network format stores."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

Kind = Literal["static-int8", "weights-only", "float16"]
STATIC: Kind = "static-int8"


class Scheme(BaseModel, extra="forbid", frozen=True):
    """One numeric scheme. Integer weights are always symmetric with zero point 0, in int8 tensors within ±(2^(bits-1) - 1)."""

    activation_bits: int = Field(8, ge=2, le=8, description="bits of the activations")
    activation_signed: bool = Field(False, description="int8 activations instead of uint8")
    activation_symmetric: bool = Field(False, description="zero point fixed (0 for signed)")
    weight_bits: int = Field(7, ge=2, le=8, description="bits of the weights; 7 avoids the 16-bit saturation of x86 without VNNI")
    weight_granularity: Literal["per-channel", "per-tensor"] = "per-channel"
    kind: Kind | None = Field(
        None,
        description="static-int8 (also where absent): weights and activations are integers; weights-only: int8 weights, float activations; "
        "float16: weights in float16",
    )
    arithmetic: Literal["float32", "float16"] | None = Field(
        None, description="what a float16 file computes in; absent: float32 on CPUs, where the runtimes widen it at load, float16 on accelerators"
    )

    sums: Literal["in-layer"] | None = Field(
        None,
        description="in-layer: a layer's result goes into an addition in float and the shortcut alone is quantized, for TensorRT; absent: both are quantized",
    )

    @field_validator("kind", mode="after")
    @classmethod
    def _default_is_absent(cls, value: Any) -> Any:
        return None if value == STATIC else value  # one scheme has one form, and one fingerprint

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.arithmetic is not None and self.kind != "float16":
            raise ValueError("arithmetic belongs to kind = 'float16'; the other kinds compute in float32 or in integers")
        return self

    @property
    def quantizes_activations(self) -> bool:
        """Whether layers compute on integers; else activations are float, and nothing is calibrated."""
        return self.kind is None

    @property
    def integer_weights(self) -> bool:
        """Whether weights are int8 tensors with scales."""
        return self.kind != "float16"

    @property
    def half_arithmetic(self) -> bool:
        """Whether activations and sums are float16 in the file."""
        return self.kind == "float16" and self.arithmetic == "float16"


class QuantizationPlan(BaseModel, extra="forbid", frozen=True):
    """What the engine did to a network, enough to do the same again: the scheme and where quantizers stand."""

    scheme: Scheme
    quantizers: tuple[str, ...] = Field(description="names of the fake-quant modules in graph order; compared on rebuilding")
    batch_norm: Literal["live", "folded"] = Field("folded", description="live only inside training; a finished twin is folded")
    float_layers: tuple[str, ...] | None = Field(None, description="layers kept in float32, in graph order; None: none is")
