"""A target's profile: where the file will run and which rules follow from that, as data.

Those that ship are in `targets/profiles/`; a user's own is a `.toml` with the same keys, whole or on top of another one by
`extends = "arm"`. Tables are merged key by key, lists and values are replaced.
"""

import difflib
import hashlib
import tomllib
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.foundation.files import canonical_json
from kdpipe.foundation.quantization.scheme import STATIC, Kind, Scheme
from kdpipe.targets.devices.agent import runtimes
from kdpipe.targets.instruction_sets import NAMES, probe

SHIPPED = "kdpipe.targets.profiles"
DEFAULT_VARIANT = "default"
MOST_BYTES = 1_000_000  # of a profile: what is larger was given by mistake, and tomllib takes its time

DeviceClass = Literal["x86-cpu", "arm-cpu", "nvidia-gpu", "intel-npu"]
_ARCHITECTURE = {"x86-cpu": "x86-64", "arm-cpu": "aarch64"}  # those that a host's CPU can be


def _specifier(value: str) -> str:
    try:
        SpecifierSet(value)
    except InvalidSpecifier as error:
        raise ValueError("not a version range such as '>=1.22,<2'") from error
    return value


def _instruction_set(value: str) -> str:
    if value not in NAMES:
        near = difflib.get_close_matches(value, NAMES, n=1)
        raise ValueError("unknown instruction set" + (f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(NAMES))}"))
    return value


InstructionSet = Annotated[str, AfterValidator(_instruction_set)]
Threads = Annotated[int, Field(ge=1, le=1024)] | Literal["all"]


class RuntimeNeed(BaseModel, extra="forbid", frozen=True):
    """A runtime in which the file is checked on the host, `[[runtimes]]`."""

    name: str = Field(description="onnxruntime, openvino, or your own: package.module:name")
    versions: Annotated[str, AfterValidator(_specifier)] = Field("", description="version range of its distribution, e.g. '>=1.22,<2'; empty: any")
    optional: bool | None = Field(None, description="true, of [[device_runtimes]]: measured where the device has it, and told where not")


class InstructionNeeds(BaseModel, extra="forbid", frozen=True):
    """`[instruction_sets]`: names of `targets/instruction_sets.py`."""

    needs: tuple[InstructionSet, ...] = Field((), description="all of these must be there, else the file is not measured")
    fast_on: tuple[InstructionSet, ...] = Field((), description="one of these makes int8 clearly faster than float")
    exact_on: tuple[InstructionSet, ...] = Field((), description="a host with one of these computes the file without saturation")


class Variant(BaseModel, extra="forbid", frozen=True):
    """`[variants.<name>]`: another scheme for devices that can do more; chosen by the user, by the device, or by the bundle where it runs."""

    title: str = Field(description="one line for listings")
    needs: tuple[InstructionSet, ...] = Field(min_length=1, description="what the device must have, beside the profile's needs")
    exact_on: tuple[InstructionSet, ...] = Field(min_length=1, description="as in [instruction_sets], for this scheme")
    scheme: Scheme


class Calibration(BaseModel, extra="forbid", frozen=True):
    """`[calibration]`: how activation ranges are found, on training data only."""

    samples: int = Field(512, ge=1, description="training samples")
    method: Literal["minmax", "percentile", "mse"] = "minmax"
    percentile: float = Field(99.99, gt=50, le=100, description="kept share of the activations in per cent, for method 'percentile'")


class BenchSettings(BaseModel, extra="forbid", frozen=True):
    """`[bench]` of a profile: what is measured unless the project says otherwise."""

    threads: tuple[Threads, ...] = Field((1, "all"), min_length=1, description="thread counts; 'all': every core of the device")
    hint: Literal["latency", "throughput"] = Field("latency", description="the runtime's performance hint, where it has one")
    batches: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((1, 32), min_length=1, description="batch sizes; a static file has one only")
    percentiles: tuple[Literal[50, 90, 95, 99], ...] = Field((50, 90, 95), min_length=1, description="measured on until these are claimable")
    seconds: float = Field(1.0, gt=0, le=600, description="measured time of one comparison (all models, one runtime, batch and thread count)")


class Profile(BaseModel, extra="forbid", frozen=True):
    """Everything about a target that is not the network. `variant` is the user's choice among `default` and `variants`."""

    name: str = Field(description="the file's name without .toml")
    title: str = Field(description="one line for listings")
    variant: str = Field(DEFAULT_VARIANT, description="'default': [scheme]; else a name of [variants]")
    scheme_name: str | None = Field(
        None, exclude=True, description="what [scheme] is called beside the variants; another name for 'default', and no part of what the file is"
    )
    device_class: DeviceClass
    accelerator: Literal["CPU", "TensorRT", "NPU"] = Field("CPU", description="what computes on the device")
    runtimes: tuple[RuntimeNeed, ...] = Field(min_length=1, description="where the file is checked on the host")
    instruction_sets: InstructionNeeds = Field(default_factory=InstructionNeeds)
    scheme: Scheme
    variants: dict[str, Variant] = Field(default_factory=dict)
    opset: int = Field(19, ge=13, description="opset of the exported file; per-channel Q/DQ needs 13, ONNX's reference evaluation of Q/DQ 19")
    opset_range: tuple[int, int] = Field((13, 20), description="lowest and highest opset that the target takes")
    batch: Literal["dynamic", "static"] = "dynamic"
    static_batch: int = Field(1, ge=1, description="the batch size of a static file")
    keep_float: tuple[str, ...] = Field((), description="operators that are not quantized")
    forbidden: tuple[str, ...] = Field((), description="operators that the target does not run")
    calibration: Calibration = Field(default_factory=Calibration)
    bench: BenchSettings = Field(default_factory=BenchSettings)
    formats: tuple[Literal["onnx", "openvino-ir"], ...] = Field(("onnx",), min_length=1, description="files of the bundle")
    compile_on: Literal["host", "device"] = Field("host", description="where the runtime's own form is made")
    device_runtimes: tuple[RuntimeNeed, ...] | None = Field(
        None, min_length=1, description="where a device measures the file, when that is not what the host checks it in: the accelerator's own"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.opset_range
        if not low <= self.opset <= high:
            raise ValueError(f"opset = {self.opset} is not in opset_range = [{low}, {high}]")
        if self.variant != DEFAULT_VARIANT and self.variant not in self.variants:
            raise ValueError(f"unknown variant {self.variant!r}; known: {', '.join(dict.fromkeys([DEFAULT_VARIANT, *self.variant_names]))}")
        if DEFAULT_VARIANT in self.variants:
            raise ValueError("[variants.default] is taken: the default variant is [scheme]")
        if self.scheme_name in self.variants:
            raise ValueError(f"scheme_name = {self.scheme_name!r} is the name of a variant")
        if any(need.optional for need in self.runtimes) or (self.device_runtimes and all(need.optional for need in self.device_runtimes)):
            raise ValueError("optional is for further [[device_runtimes]]: the others prove the file")
        return self

    @property
    def digest(self) -> str:
        """The sha256 of the whole resolved profile with the chosen variant; titles count too, a renamed profile is another one."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def chosen_scheme(self) -> Scheme:
        """The scheme of the chosen variant; where it leaves open what float16 computes in, the accelerator decides."""
        scheme = self.scheme if self.variant == DEFAULT_VARIANT else self.variants[self.variant].scheme
        if scheme.kind == "float16" and scheme.arithmetic is None and self.accelerator != "CPU":
            return scheme.model_copy(update={"arithmetic": "float16"})
        return scheme

    @property
    def architecture(self) -> str | None:
        """`x86-64` or `aarch64` for a CPU target; None for accelerators."""
        return _ARCHITECTURE.get(self.device_class)

    @property
    def variant_names(self) -> tuple[str, ...]:
        """The name of `[scheme]`, then those of the variants."""
        return (self.scheme_name or DEFAULT_VARIANT, *self.variants)

    @property
    def variant_name(self) -> str:
        """The chosen variant as it is told: `avx2` for the default of `cpu`."""
        return self.variant_names[0] if self.variant == DEFAULT_VARIANT else self.variant

    @property
    def exact_sets(self) -> tuple[str, ...]:
        """The instruction sets one of which makes a machine compute the chosen variant's file without saturation."""
        return self.instruction_sets.exact_on if self.variant == DEFAULT_VARIANT else self.variants[self.variant].exact_on

    @property
    def needed_sets(self) -> tuple[str, ...]:
        """The instruction sets all of which a machine must have to be one that the chosen variant is for."""
        own = () if self.variant == DEFAULT_VARIANT else self.variants[self.variant].needs
        return tuple(dict.fromkeys((*self.instruction_sets.needs, *own)))

    def of_variant(self, name: str) -> "Profile":
        """The same profile with this variant chosen; `name` is one of `variant_names`, or `default`."""
        return self.model_copy(update={"variant": DEFAULT_VARIANT if name == self.scheme_name else name})

    def exact_on(self, instruction_sets: frozenset[str]) -> bool:
        """Whether a host with these instruction sets computes the int8 file without saturation, so that its quality here is its quality there."""
        return not self.chosen_scheme.quantizes_activations or not instruction_sets.isdisjoint(self.exact_sets)

    def why_not_exact(self, instruction_sets: frozenset[str], *, where: str = "this host") -> str | None:
        """Why figures of the file from a machine with these instruction sets are not those of its chip; None: they are."""
        if self.exact_on(instruction_sets):
            return None
        return f"measured exactly only where the CPU has {' or '.join(self.exact_sets)}: {where} has not, its sums saturate in 16 bits"

    @property
    def runtimes_on_device(self) -> tuple[RuntimeNeed, ...]:
        """The runtimes in which the target's own device measures the file."""
        return self.device_runtimes or self.runtimes

    def runtimes_there(self, have: Collection[str]) -> tuple[RuntimeNeed, ...]:
        """Those of `runtimes_on_device` on a machine that has the runtimes `have`; where it has none of them, those that a host checks the file in."""
        return self.runtimes_on_device if any(need.name in have for need in self.runtimes_on_device) else self.runtimes

    def fitted_to(self, have: Collection[str], *, where: str) -> tuple["Profile", tuple[str, ...]]:
        """The profile without the runtimes that a device with the runtimes `have` lacks, and for each that is left out, that it is.

        An accelerator's are all kept but those that are optional, and so are a CPU's where the device has none of them: without these nothing can be measured.
        """
        some = self.architecture is not None and any(need.name in have for need in self.runtimes_on_device)
        absent = [need for need in self.runtimes_on_device if need.name not in have and (some or need.optional)]
        if not absent:
            return self, ()
        there = tuple(need for need in self.runtimes_on_device if need not in absent)
        return self.model_copy(update={"device_runtimes": there}), tuple(f"not measured in {need.name}: not available on {where}" for need in absent)

    def why_not_measurable(self, instruction_sets: frozenset[str], *, where: str = "this host", runtimes: Collection[str] = ()) -> str | None:
        """Why a machine cannot measure the target's latency; None: it can.

        `instruction_sets`: those of its CPU; `runtimes`: those that it has, which count where the target computes elsewhere; `where`: what it is called.
        """
        if self.architecture is None:
            missing = [need.name for need in self.runtimes_on_device if need.name not in runtimes]
            return f"not measured: no device (the target computes on {self.accelerator}, {where} has no {' and no '.join(missing)})" if missing else None
        if self.architecture not in instruction_sets:
            return f"not measured: no device (the target is {self.architecture}, {where} is not)"
        if all(":" in need.name for need in self.runtimes_on_device):
            own = ", ".join(need.name for need in self.runtimes_on_device)
            return f"not measured: {own} is your own, and what times files (the agent, one file without kdpipe) has the runtimes that ship"
        missing = [name for name in self.needed_sets if name not in instruction_sets]
        return f"not measured: {where} lacks {', '.join(missing)}" if missing else None

    def measurable_here(self) -> bool:
        """Whether this host can measure the target's latency, by probing it now."""
        return self.why_not_measurable(probe(), runtimes=runtimes() if self.architecture is None else ()) is None


def profile_names() -> list[str]:
    """The names of the profiles that ship, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(SHIPPED).iterdir() if entry.name.endswith(".toml"))


def load_profile(name_or_path: str | Path, *, at: str, variant: str | None = None, scheme: Kind | None = None) -> Profile:
    """The profile that ships under this name, or the one in a `.toml` file; `at` says where the name was written.

    `variant` overrides the file's; `scheme` the kind of its scheme, for which there are no variants then. Raises ConfigError: unknown
    name, file missing or not TOML, unknown keys (with the nearest one), values out of range (all problems of the file in one go).
    """
    path = _located(str(name_or_path), at=at)
    keys: dict[str, Any] = {}
    for _, given in _layers(path, at=at, visited=()):
        keys = _merged(keys, given)
    keys.setdefault("name", path.stem)
    if scheme is not None:
        keys = _of_kind(keys, scheme, variant, at=at)
    if variant is not None:
        _require_variant(variant, keys)
        keys["variant"] = variant
    if keys.get("variant") is not None and keys.get("variant") == keys.get("scheme_name"):
        keys["variant"] = DEFAULT_VARIANT
    try:
        return Profile.model_validate(keys)
    except ValidationError as error:
        raise ConfigError.gather([_problem(details, path) for details in _told_once(_causes(error.errors()))]) from error


def _require_variant(variant: str, keys: Mapping[str, Any]) -> None:
    own = keys.get("variants", {})
    known = [str(keys.get("scheme_name") or DEFAULT_VARIANT), *(own if isinstance(own, dict) else ())]
    if variant not in known and variant != DEFAULT_VARIANT:
        near = difflib.get_close_matches(variant, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown variant {variant!r} of the profile {keys['name']!r}", at="variant", do=f"{hint}its variants: {', '.join(known)}")


def _of_kind(keys: dict[str, Any], kind: Kind, variant: str | None, *, at: str) -> dict[str, Any]:
    """The profile's keys with another kind of scheme. Weights alone have all 8 bits: the sums are float and cannot saturate."""
    if kind == STATIC:
        return _merged(keys, {"scheme": {"kind": kind}})
    if variant is not None:
        raise ConfigError(f"variant = {variant!r} does not go with scheme = {kind!r}", at=at, do="remove one: the variants are schemes of static int8")
    own = keys.get("scheme", {})
    granularity = {key: own[key] for key in ("weight_granularity",) if key in own}
    scheme = {"kind": kind} if kind == "float16" else {"kind": kind, "weight_bits": 8, **granularity}
    return {**{key: value for key, value in keys.items() if key not in ("variant", "variants", "scheme_name")}, "scheme": scheme}


def profile_layers(name_or_path: str | Path, *, at: str) -> tuple[tuple[Path, Mapping[str, Any]], ...]:
    """The files that make up the profile, the one that all others extend first, each with the keys that stand in it. ConfigError as `load_profile`."""
    return tuple(_layers(_located(str(name_or_path), at=at), at=at, visited=()))


def _located(name: str, *, at: str) -> Path:
    known = profile_names()
    if name in known:
        return Path(str(files(SHIPPED).joinpath(f"{name}.toml")))
    if not name.endswith(".toml"):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown target profile {name!r}", at=at, do=f"{hint}profiles that ship: {', '.join(known)}; your own: a path that ends in .toml")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no such profile file: {path}", at=at, do="check the path; it is relative to the file that names it")
    return path


def _layers(path: Path, *, at: str, visited: tuple[Path, ...]) -> list[tuple[Path, Mapping[str, Any]]]:
    if path.resolve() in visited:
        raise ConfigError(f"profiles extend each other: {' → '.join(step.name for step in (*visited, path))}", at=at, do="remove one of the 'extends'")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ConfigError(f"the file has {size / 1e6:,.1f} MB, a profile has at most {MOST_BYTES / 1e6:g}", at=path, do="check that it is a profile")
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the profile cannot be read: {error.strerror or error}", at=path, do="check its permissions") from error
    except RecursionError as error:
        raise ConfigError("profile is not usable TOML: thousands of nested brackets", at=path, do="write it plainer") from error
    except ValueError as error:  # of TOML, of UTF-8, and Python's own of a number with thousands of digits
        raise ConfigError(f"profile is not valid TOML: {error}", at=path, do="mend the line that the message names") from error
    parent = keys.pop("extends", None)
    if parent is None:
        return [(path, keys)]
    if not isinstance(parent, str):
        raise ConfigError(f"extends = {parent!r} is not a name", at=path, do='write extends = "arm" or a path that ends in .toml')
    where = str(path.parent / parent) if parent.endswith(".toml") else parent
    return [*_layers(_located(where, at=f"{path}: extends"), at=str(path), visited=(*visited, path.resolve())), (path, keys)]


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the errors that only follow from one further in: a list with a bad item also counts as too short."""
    places = [error["loc"] for error in errors]
    return [error for error in errors if not any(place[: len(error["loc"])] == error["loc"] != place for place in places)]


def _told_once(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """A value that fits none of a key's kinds is one error, which says all that it could have been."""
    places: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for error in errors:
        places.setdefault(tuple(part for part in error["loc"] if not _is_tag(part)), []).append(error)
    told = {place: ", or ".join([each[0]["msg"], *(error["msg"].removeprefix("Input should be ") for error in each[1:])]) for place, each in places.items()}
    return [{**each[0], "msg": told[place]} for place, each in places.items()]


def _is_tag(part: str | int) -> bool:
    """Whether pydantic put this in the place of an error for a kind that it tried: `int`, `literal['all']`, `constrained-int`."""
    return isinstance(part, str) and (part in ("int", "float", "str", "bool") or part.startswith(("literal[", "constrained-", "function-")))


def _problem(details: ErrorDetails, path: Path) -> Problem:
    place = [part for part in details["loc"] if not _is_tag(part)]
    parts = [part for part in place if isinstance(part, str)]
    table, key = ".".join(parts[:-1]), parts[-1] if parts else ""
    where = _place(path, table, key)
    section = f"[{table}]" if table else "the profile"
    if details["type"] == "extra_forbidden":
        known = _keys_of(parts[:-1])
        near = difflib.get_close_matches(key, known, n=1)
        return Problem(f"unknown key {key!r} in {section}", where, f"did you mean {near[0]!r}?" if near else f"keys of {section}: {', '.join(known)}")
    if details["type"] == "missing":
        return Problem(f"missing key {key!r} in {section}", str(path), f"add it, or extend a profile that ships: extends = {profile_names()[0]!r}")
    reason = details["msg"].removeprefix("Value error, ")
    index = f"[{place[-1]}]" if place and isinstance(place[-1], int) else ""
    value = "" if isinstance(details["input"], dict) else f"{key}{index} = {details['input']!r}: "
    return Problem(f"{value}{reason}", where, "correct the value; docs/targets.md lists what each key takes")


def _place(path: Path, table: str, key: str) -> str:
    """`file:line` of `key` in `[table]`, or the file alone where the key comes from a profile that this one extends."""
    current = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#", 1)[0].strip()
        if text.startswith("["):
            current = text.strip("[]").strip()
            if current == f"{table}.{key}".lstrip("."):
                return f"{path}:{number}"
        elif current == table and text.split("=", 1)[0].strip().strip("\"'") == key:
            return f"{path}:{number}"
    return str(path)


def _keys_of(parts: list[str]) -> list[str]:
    model: Any = Profile
    for part in parts:
        if model is Profile and part == "variants":
            model = None
        elif model is None:
            model = Variant
        else:
            field = model.model_fields.get(part)
            inner = field.annotation if field is not None else None
            model = RuntimeNeed if part == "runtimes" else inner if isinstance(inner, type) and issubclass(inner, BaseModel) else Profile
    own = sorted((model or Variant).model_fields)
    return ["extends", *own] if model is Profile else own
