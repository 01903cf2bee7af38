#!/usr/bin/env python3
"""Label images with the model in this folder. Needs numpy and onnxruntime alone; reading image files needs Pillow as well.

python predict.py digit.png
python predict.py --npy batch.npy          # float32, (n, channels, height, width), in the range of contract.json
from predict import Model; Model().probabilities(batch)

A folder with variants.json holds one model for each kind of CPU: the one for this machine is taken, after a look at what its CPU can do.
python predict.py --which                  # tells which, and why
python predict.py --variant avx2 digit.png # takes that one
"""

# This file is copied into every bundle as it is, so it imports nothing of kdpipe.

import argparse
import hashlib
import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

BATCH = 64
"""samples that are computed at once where the model leaves the batch open"""


class PredictError(Exception):
    """What is wrong, what to do, and the exit code: 2 the input, 4 a missing package, 5 a damaged bundle."""

    def __init__(self, message: str, do: str, exit_code: int = 2) -> None:
        super().__init__(f"error: {message}\n  do:  {do}")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Choice:
    """The variant that is taken, and why. `warning`: what speaks against it, where it was asked for; `folder`: in the bundle."""

    name: str
    why: str
    folder: str
    warning: "str | None" = None


class Model:
    """The bundle's model. `folder`: the bundle, None: where this file is; `threads` 0: the runtime's own choice.

    `variant`: the one to take of a bundle that has several; None: the one for this machine. `choice` says which it was, and why.
    The model file is checked against manifest.json before it is loaded.
    """

    def __init__(self, folder: "Path | None" = None, threads: int = 0, variant: "str | None" = None) -> None:
        folder = folder or Path(__file__).resolve().parent
        self.choice = chosen_in(folder, variant)
        folder = folder / self.choice.folder if self.choice else folder
        contract = read_json(folder / "contract.json")
        try:
            self.labels: list[str] = list(contract["labels"])
            entry, result = contract["inputs"][0], contract["outputs"][0]
            self.input_name, self.output_name = str(entry["name"]), str(result["name"])
            self.low, self.high = float(entry["low"]), float(entry["high"])
            batch, *shape = entry["shape"]
            self.shape: tuple[int, ...] = tuple(int(size) for size in shape)
            self.static_batch: int | None = batch if isinstance(batch, int) else None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PredictError(f"contract.json cannot be used: {error!r}", "copy the bundle again", exit_code=5) from error
        doubtful = self.choice is not None and self.choice.warning is not None
        self.session = open_session(verified(folder / "model.onnx", folder / "manifest.json"), threads, exact=doubtful)

    def logits(self, batch: Float32Array) -> Float32Array:
        """(n, *shape) in [low, high] to (n, classes); PredictError where the batch is not as the contract says."""
        self.check(batch)
        size = self.static_batch or BATCH
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part) if self.static_batch else 0
            full = np.concatenate([part, np.repeat(part[:1], missing, axis=0)]) if missing else part
            parts.append(self.session.run([self.output_name], {self.input_name: np.ascontiguousarray(full)})[0][: len(part)])
        result: Float32Array = np.concatenate(parts)
        return result

    def probabilities(self, batch: Float32Array) -> Float32Array:
        """(n, classes), rows sum to 1."""
        logits = self.logits(batch)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: Float32Array = powers / powers.sum(axis=1, keepdims=True)
        return result

    def check(self, batch: npt.NDArray[Any]) -> None:
        """Shape, type and values of a batch against the contract."""
        wanted = f"float32 of shape (n, {', '.join(map(str, self.shape))}) in [{self.low:g}, {self.high:g}]"
        if batch.dtype != np.float32:
            hint = "divide the bytes by 255 and convert: (x / 255).astype(np.float32)" if batch.dtype == np.uint8 else "convert with .astype(np.float32)"
            raise PredictError(f"the values are {batch.dtype}; the model takes {wanted}", hint)
        if batch.ndim != len(self.shape) + 1 or batch.shape[1:] != self.shape or not len(batch):
            raise PredictError(f"the shape is {batch.shape}; the model takes {wanted}", "reshape the batch; one sample is x[None]")
        if not np.isfinite(batch).all():
            raise PredictError("the batch holds NaN or infinity", f"give {wanted}")
        tolerance = 1e-6 * (self.high - self.low)
        if batch.min() < self.low - tolerance or batch.max() > self.high + tolerance:
            raise PredictError(
                f"the values reach from {batch.min():g} to {batch.max():g}; the model takes {wanted}",
                "scale them; bytes are divided by 255, nothing else is done",
            )

    def read_image(self, path: Path, *, resize: bool = False) -> Float32Array:
        """The image file as one sample, (*shape). An image of another size is refused unless `resize`."""
        try:
            from PIL import Image, UnidentifiedImageError  # optional: only image files need it
        except ImportError as error:
            raise PredictError("reading image files needs Pillow", "pip install pillow, or use --npy", exit_code=4) from error
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise PredictError(f"the model's samples have the shape {self.shape} and are no images", "use --npy")
        channels, height, width = self.shape
        try:
            with Image.open(path) as file:
                image = file.convert("L" if channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise PredictError(f"{path} cannot be read: {error}", "name an image file that Pillow reads") from error
        if image.size != (width, height):
            if not resize:
                raise PredictError(
                    f"{path} is {image.size[0]}×{image.size[1]}; the model takes {width}×{height}",
                    "crop or scale the image as the training data were, or give --resize",
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1)
        scaled: Float32Array = np.float32(self.low) + pixels / np.float32(255) * np.float32(self.high - self.low)
        return scaled


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Label images with the model in this folder.")
    parser.add_argument("images", nargs="*", type=Path, help="image files")
    parser.add_argument("--npy", type=Path, help="a .npy file with a float32 batch, or with one sample")
    parser.add_argument("--resize", action="store_true", help="scale images of another size (bilinear)")
    parser.add_argument("--top", type=int, default=3, help="labels to print for each sample (default: 3)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime (default: its own choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all probabilities")
    parser.add_argument("--variant", help="take this variant (default: the one for this machine)")
    parser.add_argument("--which", action="store_true", help="tell which variant this machine takes, and why")
    options = parser.parse_args(arguments)
    if not options.which and bool(options.images) == bool(options.npy):
        parser.error("give image files, or --npy FILE")
    try:
        if options.which:
            return tell_which(Path(__file__).resolve().parent, options.variant, as_json=options.json)
        model = Model(threads=options.threads, variant=options.variant)
        if model.choice:
            print(told(model.choice), file=sys.stderr)
        if options.npy:
            batch = read_npy(options.npy, model)
            names = [f"{options.npy}[{k}]" for k in range(len(batch))]
        else:
            batch = np.stack([model.read_image(path, resize=options.resize) for path in options.images])
            names = [str(path) for path in options.images]
        show(names, model.probabilities(batch), model.labels, top=options.top, as_json=options.json, choice=model.choice)
    except PredictError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def show(names: list[str], probabilities: Float32Array, labels: list[str], *, top: int, as_json: bool, choice: "Choice | None" = None) -> None:
    """Print the `top` labels of each sample, or everything as JSON."""
    if as_json:
        rows = [
            {"sample": name, "label": labels[int(p.argmax())], "probabilities": dict(zip(labels, map(float, p), strict=True))}
            for name, p in zip(names, probabilities, strict=True)
        ]
        which = {"variant": choice.name, "why": choice.why} if choice else {}
        print(json.dumps({**which, "predictions": rows}, indent=2))
        return
    for name, p in zip(names, probabilities, strict=True):
        best = np.argsort(-p, kind="stable")[: max(1, top)]
        print(f"{name}: " + ", ".join(f"{labels[k]} ({100 * p[k]:.1f} %)" for k in best))


def tell_which(folder: Path, variant: "str | None", *, as_json: bool) -> int:
    """Print the choice; returns the exit code."""
    choice = chosen_in(folder, variant)
    if choice is None:
        raise PredictError("this bundle has no variants: it holds one model", "leave out --which")
    print(json.dumps({"variant": choice.name, "why": choice.why, "warning": choice.warning}) if as_json else told(choice))
    return 0


def told(choice: Choice) -> str:
    """`variant vnni: …`."""
    return f"variant {choice.name}: {choice.why}" + (f"\nwarning: {choice.warning}" if choice.warning else "")


def chosen_in(folder: Path, asked: "str | None") -> "Choice | None":
    """The variant of the bundle in `folder` for this machine, or the one that is asked for; None where the bundle has none."""
    path = folder / "variants.json"
    if not path.is_file():
        if asked is not None:
            raise PredictError(f"there is no variant {asked!r}: this bundle holds one model", "leave out --variant")
        return None
    verified(path, folder / "manifest.json")
    table = read_json(path)
    try:
        choice = choose(table, probed(table), asked)
        test = table["arithmetic"]
        if asked is not None or choice.name == table["default"]:
            return choice
        if saturates(verified(folder / test["file"], folder / "manifest.json"), test):
            claimed = f"this CPU says that it has what {choice.name} needs, but int8 sums saturate in onnxruntime here"
            return choose(table, None, None, instead=claimed)
    except (KeyError, TypeError, AttributeError) as error:
        raise PredictError(f"variants.json cannot be used: {error!r}", "copy the whole bundle again", exit_code=5) from error
    return choice


def choose(table: Any, sets: "frozenset[str] | None", asked: "str | None", *, instead: "str | None" = None) -> Choice:
    """The first variant that a CPU with these instruction sets computes exactly and fast; else the default, which is right on all.

    `sets` None: what the CPU can do is not known, for the reason `instead`. `asked`: this one, whatever the CPU. PredictError where there is no such one.
    """
    variants = {variant["name"]: variant for variant in table["variants"]}
    if asked is not None and asked not in variants:
        raise PredictError(f"there is no variant {asked!r}", f"name one of: {', '.join(variants)}")
    if asked is not None:
        doubt = _doubt(variants[asked], sets)
        return Choice(asked, "it was asked for", variants[asked]["folder"], doubt)
    default = variants[table["default"]]
    if sets is None:
        why = instead or "what this CPU can do could not be found out"
        return Choice(default["name"], f"{why}; this one is right on every CPU", default["folder"])
    for variant in table["variants"]:
        if variant is not default and sets.issuperset(variant["needs"]) and not sets.isdisjoint(variant["exact_on"]):
            return Choice(variant["name"], f"this CPU has {', '.join(variant['needs'])}", variant["folder"])
    if table["architecture"] not in sets:
        return Choice(
            default["name"], f"this is no {table['architecture']} machine; this one is right on every CPU, if not the fastest there", default["folder"]
        )
    absent = sorted({name for variant in table["variants"] for name in variant["needs"] if name not in sets})
    return Choice(default["name"], f"this CPU has no {', '.join(absent)}" if absent else "it is the only one for this CPU", default["folder"])


def _doubt(variant: Any, sets: "frozenset[str] | None") -> "str | None":
    slower = "it runs in ONNX Runtime's exact mode, which is slower"
    if sets is None:
        return f"whether this CPU computes it exactly could not be found out: {slower}"
    exact = not sets.isdisjoint(variant["exact_on"])
    return None if exact else f"this CPU has no {' or '.join(variant['exact_on'])}, and its sums would saturate in 16 bits: {slower}"


def probed(table: Any) -> "frozenset[str] | None":
    """What this CPU can do, by the names of the table; None where the system does not tell."""
    machine = table["architectures"].get(platform.machine().lower())
    flags: set[str] = set()
    if platform.system() == "Linux":
        try:
            text = Path("/proc/cpuinfo").read_text(errors="replace")
        except OSError:
            return None
        cores = [set(line.split()) for line in re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, flags=re.MULTILINE)]
        flags = set.intersection(*cores) if cores else set()
    elif platform.system() == "Darwin":
        flags = {key for key in table["flags"] if key.startswith("hw.") and _sysctl(key) == "1"}
    if machine is None or not flags:
        return None
    return frozenset({machine, *(name for flag in flags for name in table["flags"].get(flag, ()))})


def _sysctl(key: str) -> "str | None":
    try:
        answer = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def saturates(model: bytes, test: Any) -> bool:
    """Whether the runtime adds int8 products in 16 bits here: one layer of the largest values tells."""
    session = open_session(model, threads=1)
    answer = session.run(None, {session.get_inputs()[0].name: np.ones(tuple(test["shape"]), np.float32)})[0]
    return bool(np.abs(answer - np.float32(test["answer"])).max() > 0.01 * abs(test["answer"]))


def read_npy(path: Path, model: Model) -> Float32Array:
    """The batch in a .npy file; one sample without a batch axis is a batch of one."""
    try:
        batch: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise PredictError(f"{path} cannot be read: {error}", "save the batch with numpy.save") from error
    return batch[None] if batch.shape == model.shape else batch


def read_json(path: Path) -> Any:
    """A JSON file of the bundle; PredictError with code 5 where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PredictError(f"{path} cannot be read: {error}", "copy the whole bundle again", exit_code=5) from error


def verified(model: Path, manifest: Path) -> bytes:
    """The file's bytes; PredictError with code 5 where they are not those that the manifest was written for."""
    try:
        wanted = str(read_json(manifest)["files"][model.name]["sha256"])
    except (KeyError, TypeError) as error:
        raise PredictError(f"manifest.json does not name the model's digest: {error!r}", "copy the whole bundle again", exit_code=5) from error
    try:
        content = model.read_bytes()
    except OSError as error:
        raise PredictError(f"{model} cannot be read: {error}", "copy the whole bundle again", exit_code=5) from error
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise PredictError(
            f"{model.name} is not the file that manifest.json describes (sha256 {found[:12]}…, not {wanted[:12]}…)", "copy the whole bundle again", exit_code=5
        )
    return content


def open_session(content: bytes, threads: int, *, exact: bool = False) -> Any:
    """The model in ONNX Runtime on the CPU; PredictError with code 4 where that is not installed.

    `exact`: by kernels that do not saturate where the CPU has no int8 dot product; without effect elsewhere.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise PredictError("onnxruntime is not installed", "pip install onnxruntime", exit_code=4) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
