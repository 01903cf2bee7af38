"""Part `tuned` of `schemes.py`: what the search finds after fine-tuning, and whether fine-tuning once more with those layers in float could pay.

`resnet-8` on the digits with weights of few bits, the search after 2 epochs and after 4: what a second fine-tuning would cost. Recorded: how far the
fine-tuned network is below the teacher with all layers on integers, and without any rounding. Where the first is no larger, no layer is to blame.
"""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from schemes_files import PLAIN, WORK, Printing, changed
from schemes_mixed import answers, digits_resnet, loaded

from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.stages import qat
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets.profile import load_profile

EPOCHS = (2, 4)
SEEDS = 2
CASES: Mapping[int, float] = {3: 2.5, 2: 8.0}
"""Bits of the weights to the limit of the search."""


def tuned(save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Each number of epochs for each width of the weights; `save` takes what is finished."""
    task, data = loaded("digits")
    start = save_network(digits_resnet(task, data), WORK / "tuned" / "network")
    x, labels = data.test.read(np.arange(len(data.test))), data.test.labels
    rows: list[dict[str, Any]] = []
    for bits, limit in CASES.items():
        profile = changed(load_profile("cpu", at="benchmark"), weight_bits=bits)
        for seed in range(SEEDS):
            for epochs in EPOCHS:
                context = Context(folder=WORK / "tuned" / f"{bits}-{seed}-{epochs}", project=WORK, seed=seed, threads=1, progress=Printing())
                shutil.rmtree(context.folder, ignore_errors=True)
                context.folder.mkdir(parents=True)
                config = QatConfig(keep_float="auto", keep_float_drop=limit, objective=PLAIN, epochs=epochs)
                made = qat.run(Inputs({"prune": start, "teacher": start}, data, task, profile), config, context)
                found = Outcome.model_validate_json((made / "quantization.json").read_bytes()).mixed_precision
                assert found is not None
                rows.append(
                    {
                        "weight_bits": bits,
                        "limit": limit,
                        "seed": seed,
                        "epochs": epochs,
                        "outcome": found.outcome,
                        "float_layers": len(found.float_layers),
                        "rounded": max(found.trials[0].drops.values(), key=lambda drop: drop.high).model_dump(),
                        "unrounded": found.float_network.model_dump(),
                        "test_accuracy": 100 * float((answers(TorchPredictor(load_network(made).module), x).argmax(1) == labels).mean()),
                    }
                )
                print(rows[-1], flush=True)
        save({"rows": rows})
    return {"rows": rows}
