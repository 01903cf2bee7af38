"""A bundle of several variants: a whole bundle for each kind of CPU in a folder of its own, and a loader that takes the one for its machine.

`dist/<project>/<target>/`: `<variant>/` (each as `pipeline/bundle.py` writes it) · `predict.py` · `variants.json` (what each variant needs, for the loader) ·
`arithmetic.onnx` (tells the loader whether int8 sums saturate) · `report.html` (of all variants) · `manifest.json`.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.pipeline.budgets import Verdict
from kdpipe.pipeline.bundle import replacing, write_bundle
from kdpipe.pipeline.manifest import MANIFEST_FILE, shared_manifest
from kdpipe.pipeline.report.render import write_report
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.variants import ARITHMETIC_FILE, VARIANTS_FILE, loader_table
from kdpipe.targets.profile import Profile
from kdpipe.targets.saturation import saturation_model


def write_variants(build: BuildResult, name: str, members: Mapping[str, str], verdicts: Sequence[Verdict], destination: Path) -> Path:
    """Write the bundle `name` of the targets `members` (variant to target) as `destination`, whole or not at all, and return it; errors as `write_bundle`."""
    with replacing(destination) as folder:
        for variant, target in members.items():
            write_bundle(build, target, verdicts, folder / variant)
        profiles = {variant: Profile.model_validate(build.config["targets"][target]["profile"]) for variant, target in members.items()}
        write_json(folder / VARIANTS_FILE, loader_table(name, profiles))
        write_bytes(folder / ARITHMETIC_FILE, saturation_model())
        write_bytes(folder / "predict.py", files("kdpipe.pipeline").joinpath("predict.py").read_bytes())
        write_report(build, verdicts, folder / "report.html", tuple(members.values()))
        write_json(folder / MANIFEST_FILE, {**shared_manifest(build, name, tuple(members.values()), folder), "variants": dict(members)})
    return destination
