"""The attacks that a file has to stand, and whose gradients they follow: `kdpipe eval` on bundles and foreign files.

A bundle meets the attacks of its build, crafted on the twin and the float networks in the project's store, where that is at hand. Of any other file a
differentiable twin is made and held against the file first; where that fails, surrogates lend their gradients; where there are none, the file is only
searched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kdpipe.foundation.errors import ConfigError, KdpipeError
from kdpipe.foundation.networks import Network, load_network
from kdpipe.foundation.onnx_twin.twin import agreement
from kdpipe.foundation.predictor import Predictor, TorchPredictor
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.evaluation import Gap, Judging
from kdpipe.pipeline.store import Artifact, Store
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import CurvePoint, Replay
from kdpipe.stages.adversarial_files import read_adversarial
from kdpipe.stages.memory_format import channels_last
from kdpipe.stages.score import EvaluateConfig, attacks_on, curve_on

NO_GRADIENTS = "no gradients: black-box only; figures are upper bounds"

MODELS = {"qat": "twin", "prune": "pruned", "distill": "student", "teacher": "teacher"}
"""step to the model that it leaves; the nearest to the file first, as the build replays them"""

_COMPARED = 256  # samples on which a file's twin is held against it, clean and with noise


@dataclass(frozen=True)
class FileAttacks:
    """What a file has to stand. `twin`: the network that answers as it does; `gradients`: where the samples come from, in words."""

    replays: Sequence[Replay]
    curve: Sequence[CurvePoint]
    twin: Predictor | None
    gradients: str
    gaps: tuple[Gap, ...] = ()


def attacks_from_store(judging: Judging) -> FileAttacks | None:
    """The adversarial samples of the build's own networks, as the build replays them; None where the store no longer holds its twin."""
    basis, bundle = judging.basis, judging.basis.bundle
    if basis.project is None or bundle is None:
        return None
    store = Store(basis.project)
    found: dict[str, Artifact | None] = {}
    for step in MODELS:
        fingerprint = bundle.steps.get(f"qat@{bundle.target}" if step == "qat" else step)
        found[step] = store.find(fingerprint) if fingerprint and store.damage(fingerprint, thorough=True) is None else None
    if found["qat"] is None:
        return None
    replays: list[Replay] = []
    curve: Sequence[CurvePoint] = ()
    gaps = []
    for step, model in MODELS.items():
        artifact = found[step]
        if artifact is None:
            if step in bundle.steps:
                gaps.append(Gap(what=f"attacks from the {model}", reason="the project's store no longer holds it"))
            continue
        network = load_network(artifact.folder)
        known, known_curve = _already_made(judging, store, step, model)
        with quiet(network.module), channels_last(network.module):
            own = attacks_on(
                network.module,
                model,
                basis.data.test,
                judging.questions,
                {name: method for name, method in basis.config.methods().items() if name not in known},
                with_rescaled=model == "twin",
                work=judging.work.of(artifact.record.fingerprint),
            )
            made = [*(replay for replays in known.values() for replay in replays), *own]
            if model == "twin":
                curve = known_curve or curve_on(network.module, basis.data.test, judging.questions, basis.config, judging.work.of(artifact.record.fingerprint))
        replays += _in_order(made, basis.config)
    twin = TorchPredictor(load_network(_there(found["qat"]).folder).module)
    told = ", ".join(model for step, model in MODELS.items() if found[step] is not None)
    return FileAttacks(replays, curve, twin, f"replayed from the build's own networks in the project's store: {told}", tuple(gaps))


def _already_made(judging: Judging, store: Store, step: str, model: str) -> tuple[Mapping[str, list[Replay]], Sequence[CurvePoint]]:
    """What the build's score step left of the attacks asked for, by name, where it asked the same samples with the same epsilon; and its curve."""
    basis, bundle = judging.basis, judging.basis.bundle
    assert bundle is not None
    fingerprint = bundle.steps.get(f"score-qat@{bundle.target}" if step == "qat" else f"score-{step}")
    artifact = store.find(fingerprint) if fingerprint and store.damage(fingerprint, thorough=True) is None else None
    if artifact is None:
        return {}, ()
    config = EvaluateConfig.model_validate(artifact.record.identity["config"])
    same = ("norm", "strength", "attack_samples", "batch_size")
    facts = (artifact.record.identity.get("data"), artifact.record.identity.get("seed"), artifact.record.identity.get("threads"))
    if any(getattr(config, key) != getattr(basis.config, key) for key in same) or facts != (basis.data.digest, basis.seed, basis.threads):
        return {}, ()
    if config.curve_samples != basis.config.curve_samples or config.curve() != basis.config.curve():
        return {}, ()
    replays, curve = read_adversarial(artifact.folder, basis.config.methods(), judging.questions, model, classes=len(basis.data.classes))
    by_name: dict[str, list[Replay]] = {}
    for replay in replays:
        by_name.setdefault(replay.name, []).append(replay)
    return by_name, curve


def _in_order(replays: Sequence[Replay], config: EvaluateConfig) -> list[Replay]:
    order = list(config.attacks)
    return sorted(replays, key=lambda replay: order.index(replay.name))


def attacks_from_graph(
    judging: Judging, make_twin: Callable[[], nn.Module], predictor: Predictor, surrogates: Sequence[Path], *, quantized: bool
) -> FileAttacks:
    """Gradients of the file's own graph, if its twin answers as the file does; else of surrogates, if there are any; else none."""
    config, samples = judging.config, judging.basis.data.test
    if not config.attacks:
        return FileAttacks((), (), None, "not needed: no attacks were asked for")
    reason, held = _held(judging, make_twin, predictor)
    if held is not None:
        twin, told = held
        with quiet(twin):
            replays = list(attacks_on(twin, "twin", samples, judging.questions, config.methods(), with_rescaled=quantized, work=judging.work))
            curve = curve_on(twin, samples, judging.questions, config, judging.work)
        return FileAttacks(replays, curve, TorchPredictor(twin), told)
    judging.progress.say(reason)
    networks = list(_surrogates(judging, surrogates))
    if not networks:
        return FileAttacks((), (), None, NO_GRADIENTS, (no_white_box(config, reason),))
    replays = []
    for name, network in networks:
        with quiet(network.module), channels_last(network.module):
            replays += attacks_on(network.module, name, samples, judging.questions, config.methods(), with_rescaled=False, work=judging.work)
    with quiet(networks[0][1].module):
        curve = curve_on(networks[0][1].module, samples, judging.questions, config, judging.work)
    told = f"transferred from {', '.join(name for name, _ in networks)}, beside black-box attacks; figures are upper bounds ({reason})"
    return FileAttacks(replays, curve, None, told)


def _held(judging: Judging, make_twin: Callable[[], nn.Module], predictor: Predictor) -> tuple[str, tuple[nn.Module, str] | None]:
    """The file's twin once it agreed with the file on clean samples and on noisy ones, with how well; or why there is none."""
    x = judging.basis.data.test.read(judging.questions.attacked[:_COMPARED])
    noise = numpy_stream(judging.basis.seed, "eval/agreement").uniform(-1, 1, x.shape) * judging.config.strength
    both = np.concatenate([x, np.clip(x + noise, 0, 1).astype(np.float32)])
    try:
        twin = make_twin().eval()
        found = agreement(twin, both, predictor(both))
    except KdpipeError as error:
        return f"the file has no differentiable twin: {error.problems[0].message}", None
    share = f"{100 * found.same_share:.1f} % equal classes on {found.n} clean and noisy samples"
    if not found.holds:
        return f"the differentiable twin of the file does not answer as the file does ({share}): it is not used", None
    if not has_gradients(twin, judging):
        return "the file's answers do not depend differentiably on its input", None
    return "", (twin, f"a differentiable twin of the file's graph, straight through rounding, held against the file first: {share}")


def has_gradients(module: nn.Module, judging: Judging) -> bool:
    """Whether any of the first attacked samples has a gradient that is not zero."""
    chosen = judging.questions.attacked[: judging.config.batch_size]
    x = torch.from_numpy(judging.basis.data.test.read(chosen)).requires_grad_()
    with torch.enable_grad():
        logits = module(x)
        if not logits.requires_grad:
            return False
        loss = F.cross_entropy(logits / logits.detach().abs().amax().clamp_min(1), torch.from_numpy(judging.basis.data.test.labels[chosen]), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x, materialize_grads=True)
    return bool((gradient != 0).any())


def _surrogates(judging: Judging, given: Sequence[Path]) -> Iterator[tuple[str, Network]]:
    """Networks of the same shape and classes that lend their gradients: those that were named, else the newest teacher and student of the project."""
    folders = {f"surrogate {folder.name}": folder for folder in given}
    if not given and judging.basis.project is not None:
        newest = {artifact.record.step: artifact for artifact in Store(judging.basis.project).artifacts()}
        folders = {f"surrogate {MODELS[step]}": newest[step].folder for step in ("distill", "teacher") if step in newest}
    for name, folder in folders.items():
        network = load_network(folder)
        contract, data = network.spec.contract, judging.basis.data
        if (contract.shape, contract.labels) == (data.shape, data.classes):
            yield name, network
        elif given:
            raise ConfigError(
                f"the surrogate is for samples of {contract.shape} and {len(contract.labels)} classes, the data has {data.shape} and {len(data.classes)}",
                at=folder,
                do="name a network of the same data",
            )


def no_white_box(config: EvaluateConfig, reason: str) -> Gap:
    """The gap that the attacks of `config` leave where there is no gradient to follow."""
    return Gap(what=f"{', '.join(config.attacks)}: attacks that follow gradients", reason=reason)


def _there(artifact: Artifact | None) -> Artifact:
    assert artifact is not None, "looked up before"
    return artifact
