"""`kdpipe eval`: parses, calls and prints."""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.pipeline.options import AsJson, Debug
from kdpipe.pipeline.printing import print_json, print_table


def evaluate(
    subject: Annotated[Path, typer.Argument(help="A bundle's folder, a folder with network.json, or an .onnx file with contract.json beside it.")],
    project: Annotated[
        Path | None, typer.Option("--project", help="The project whose test split and [evaluate] count.", show_default="the one around SUBJECT")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other data: a built-in name, an .npz, a folder of class folders.", show_default=False)] = None,
    attacks: Annotated[
        str | None, typer.Option("--attacks", help="By commas: autoattack,pgd-20; '' for none.", show_default="the bundle's or project's own, else fgsm,pgd-20")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Test samples that are attacked, and corrupted.", show_default="as above, else 1000")] = None,
    norm: Annotated[str | None, typer.Option("--norm", help="linf or l2.", show_default="as above, else linf")] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="In the data's value range, [0, 1].", show_default="as above, else 8/255; l2: 0.5")] = None,
    corruptions: Annotated[
        str | None, typer.Option("--corruptions", help="By commas, or standard; '' for none.", show_default="as above, else standard")
    ] = None,
    decision_queries: Annotated[
        int | None, typer.Option("--decision-queries", min=0, help="Of the attack on files that asks for the class alone.", show_default="500 for files")
    ] = None,
    runtime: Annotated[list[str] | None, typer.Option("--runtime", help="Where a file is run; repeat for several.", show_default="the target's")] = None,
    contract: Annotated[Path | None, typer.Option("--contract", help="The file's contract.", show_default="contract.json beside it")] = None,
    surrogate: Annotated[
        list[Path] | None, typer.Option("--surrogate", help="A network's folder that lends its gradients; repeat.", show_default="the project's")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Keep finished batches here until all is done.", show_default="the project's work")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the scorecard as one HTML file.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of samples and noise.", show_default="as above, else 0")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge a bundle, a network or any ONNX classifier: the scorecard, under attack, with its intervals and its doubts."""
    from kdpipe.pipeline.evaluating import evaluate as judged
    from kdpipe.pipeline.evaluation_basis import Asked
    from kdpipe.pipeline.evaluation_table import as_json_value, figures_table, notes
    from kdpipe.pipeline.progress import progress_for

    asked = Asked(project, data, _listed(attacks), n, norm, epsilon, _listed(corruptions), decision_queries, seed)
    with progress_for(as_json=as_json) as progress:
        result = judged(
            subject, asked=asked, contract=contract, runtimes=runtime or (), surrogates=surrogate or (), resume=resume, report=report, progress=progress
        )
    if as_json:
        print_json(as_json_value(result))
        return
    print_table(figures_table(result))
    for note in notes(result):
        print(note)
    if report:
        print(f"report: {report}")


def _listed(names: str | None) -> tuple[str, ...] | None:
    """What stands between commas; `''` is nothing, which is not the same as not asked."""
    return None if names is None else tuple(name.strip() for name in names.split(",") if name.strip())
