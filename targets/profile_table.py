"""The profiles as the table of docs/targets.md, generated from the TOML files so that it cannot go stale."""

from collections.abc import Callable, Iterable, Sequence

from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.targets.profile import Profile, load_profile, profile_names


def markdown_table(profiles: Sequence[Profile] | None = None) -> str:
    """One column a profile (None: those that ship), one row a property; ends with a newline."""
    shown = [load_profile(name, at="profiles that ship") for name in profile_names()] if profiles is None else profiles
    rows = [[label, *(tell(profile) for profile in shown)] for label, tell in _ROWS]
    lines = [["", *(f"`{profile.name}`" for profile in shown)], ["---"] * (len(shown) + 1), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def scheme_in_words(scheme: Scheme) -> str:
    """`u8 activations, 7-bit weights per channel`."""
    if scheme.kind == "float16":
        return f"float16 weights, {scheme.arithmetic or 'float32'} arithmetic"
    if scheme.kind == "weights-only":
        return f"float activations; {scheme.weight_bits}-bit symmetric weights {scheme.weight_granularity.replace('-', ' ')}"
    sign, symmetry = "s" if scheme.activation_signed else "u", ", zero point 0" if scheme.activation_symmetric else ""
    return f"{sign}{scheme.activation_bits} activations{symmetry}; {scheme.weight_bits}-bit symmetric weights {scheme.weight_granularity.replace('-', ' ')}"


def _batch(profile: Profile) -> str:
    return "dynamic" if profile.batch == "dynamic" else f"static, {profile.static_batch}"


def _variants(profile: Profile) -> str:
    default = [f"`{profile.scheme_name}`: the scheme above"] if profile.scheme_name else []
    return "; ".join([*default, *(f"`{name}`: {scheme_in_words(variant.scheme)}" for name, variant in profile.variants.items())]) or "–"


def _bench(profile: Profile) -> str:
    bench = profile.bench
    return f"batch {_listed(bench.batches)}; threads {_listed(bench.threads)}; until {_listed(f'p{value}' for value in bench.percentiles)}; {bench.seconds:g} s"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "–"


_ROWS: tuple[tuple[str, Callable[[Profile], str]], ...] = (
    ("where it runs", lambda profile: profile.title),
    ("computed by", lambda profile: profile.accelerator),
    ("checked on the host in", lambda profile: _listed(f"{need.name} {need.versions}" for need in profile.runtimes)),
    ("measured on a device in", lambda profile: _listed(f"{need.name} {need.versions}" for need in profile.runtimes_on_device)),
    ("needs", lambda profile: _listed(profile.instruction_sets.needs)),
    ("int8 is fast with", lambda profile: _listed(profile.instruction_sets.fast_on)),
    ("exact on a host with one of", lambda profile: _listed(profile.instruction_sets.exact_on)),
    ("scheme", lambda profile: scheme_in_words(profile.scheme)),
    ("variants", _variants),
    ("opset (range)", lambda profile: f"{profile.opset} ({profile.opset_range[0]}–{profile.opset_range[1]})"),
    ("batch", _batch),
    ("kept in float", lambda profile: _listed(profile.keep_float)),
    ("operators it does not run", lambda profile: _listed(profile.forbidden)),
    ("calibration", lambda profile: f"{profile.calibration.samples} samples, {profile.calibration.method}"),
    ("files of the bundle", lambda profile: _listed(profile.formats)),
    ("compiled on the", lambda profile: profile.compile_on),
    ("bench", _bench),
)
