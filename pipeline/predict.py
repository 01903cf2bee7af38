#!/usr/bin/env python3
"""Label images with the model in this folder. Needs numpy and onnxruntime alone; reading image files needs Pillow as well.

python predict.py digit.png
python predict.py --npy batch.npy          # float32, (n, channels, height, width), in the range of contract.json
from predict import Model; Model().probabilities(batch)
"""

# This file is copied into every bundle as it is, so it imports nothing of kdpipe.

import argparse
import hashlib
import json
import sys
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


class Model:
    """The bundle's model. `folder`: the bundle, None: where this file is; `threads` 0: the runtime's own choice.

    The model file is checked against manifest.json before it is loaded.
    """

    def __init__(self, folder: Path | None = None, threads: int = 0) -> None:
        folder = folder or Path(__file__).resolve().parent
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
        self.session = open_session(verified(folder / "model.onnx", folder / "manifest.json"), threads)

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
    options = parser.parse_args(arguments)
    if bool(options.images) == bool(options.npy):
        parser.error("give image files, or --npy FILE")
    try:
        model = Model(threads=options.threads)
        if options.npy:
            batch = read_npy(options.npy, model)
            names = [f"{options.npy}[{k}]" for k in range(len(batch))]
        else:
            batch = np.stack([model.read_image(path, resize=options.resize) for path in options.images])
            names = [str(path) for path in options.images]
        show(names, model.probabilities(batch), model.labels, top=options.top, as_json=options.json)
    except PredictError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def show(names: list[str], probabilities: Float32Array, labels: list[str], *, top: int, as_json: bool) -> None:
    """Print the `top` labels of each sample, or everything as JSON."""
    if as_json:
        rows = [
            {"sample": name, "label": labels[int(p.argmax())], "probabilities": dict(zip(labels, map(float, p), strict=True))}
            for name, p in zip(names, probabilities, strict=True)
        ]
        print(json.dumps({"predictions": rows}, indent=2))
        return
    for name, p in zip(names, probabilities, strict=True):
        best = np.argsort(-p, kind="stable")[: max(1, top)]
        print(f"{name}: " + ", ".join(f"{labels[k]} ({100 * p[k]:.1f} %)" for k in best))


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
    """The model file's bytes; PredictError with code 5 where they are not those that the manifest was written for."""
    try:
        wanted = str(read_json(manifest)["files"]["model.onnx"]["sha256"])
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


def open_session(content: bytes, threads: int) -> Any:
    """The model in ONNX Runtime on the CPU; PredictError with code 4 where that is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PredictError("onnxruntime is not installed", "pip install onnxruntime", exit_code=4) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
