"""An ONNX file as the rules read it: checked before anything is believed, functions inlined, large data left on the disk."""

from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no stubs

from kdpipe.foundation.errors import ConfigError, VerificationError


def read_onnx_file(path: Path) -> Any:
    """The model without the values that lie in other files; model-local functions are inlined.

    Raises ConfigError when there is no such file, VerificationError when it is not a valid ONNX file: cut off, of another kind, with data
    that is missing, outside its folder or shorter than its shape claims.
    """
    if path.is_dir():
        raise ConfigError("this is a folder, not a model file", at=path, do="give the path of an .onnx or .xml file, or of a bundle that kdpipe build wrote")
    if not path.is_file():
        raise ConfigError("no such model file", at=path, do="give the path of an .onnx file")
    try:
        if not path.stat().st_size:
            raise not_valid(path, "it is empty")
        onnx.checker.check_model(str(path))
        model = onnx.load(path, load_external_data=False)
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except (DecodeError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise not_valid(path, " ".join(str(error).split())[:300]) from error
    except OSError as error:
        raise ConfigError(f"the model file cannot be read: {error.strerror or error}", at=path, do="check its permissions") from error


def not_valid(path: Path, words: str) -> VerificationError:
    """The error of a file that is no model, with the words of whoever read it."""
    return VerificationError(f"not a valid ONNX file: {words}", at=path, do="export or download it again")
