"""`kdpipe targets …`: the profiles, one in full, a file held against them, and one of your own."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kdpipe.pipeline.options import AsJson, Debug
from kdpipe.pipeline.printing import print_json, print_table, table

if TYPE_CHECKING:
    from kdpipe.pipeline.target_check import Checked
    from kdpipe.targets.profile import Profile


class _Targets(TyperGroup):
    """`kdpipe targets arm` is `kdpipe targets show arm`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names; a word that is none is a profile to show."""
        return super().resolve_command(ctx, args if args[0] in self.commands or args[0].startswith("-") else ["show", *args])


targets = typer.Typer(cls=_Targets, help="The target profiles: list them, show one, check a file against them, write your own.", invoke_without_command=True)


_NAMED = 3  # nodes that one line names


@targets.callback()
def ls(context: typer.Context, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the target profiles that ship; show one, check a file against them, write your own."""
    if context.invoked_subcommand is not None:
        return
    from kdpipe.targets.profile import load_profile, profile_names

    profiles = [load_profile(each, at="targets") for each in profile_names()]
    if as_json:
        print_json({"targets": [profile.model_dump(mode="json") for profile in profiles]})
        return
    shown = table("target", "what it is", "runtimes", "measured here")
    for profile in profiles:
        runtimes = ", ".join(runtime.name for runtime in profile.runtimes)
        shown.add_row(profile.name, profile.title, runtimes, "yes" if profile.measurable_here() else "no")
    print_table(shown)


@targets.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A profile that ships, or the path of a .toml.")],
    variant: Annotated[str | None, typer.Option("--variant", help="One of its variants.", show_default="the profile's own choice")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a profile in full: every key, the file that it comes from, and what this machine can measure of it."""
    from kdpipe.targets.profile import load_profile
    from kdpipe.targets.profile_origin import flat_values, origins

    profile = load_profile(name, at="targets show", variant=variant)
    came_from = origins(name, profile, at="targets show")
    if as_json:
        print_json({"profile": profile.model_dump(mode="json"), "origins": came_from, "here": _here(profile)})
        return
    shown = table("key", "value", "from")
    for key, value in flat_values(profile):
        shown.add_row(key, _told(value), came_from[key])
    print_table(shown)
    for line in _here(profile).values():
        print(line)


@targets.command("check")
def check(
    subject: Annotated[
        Path, typer.Argument(metavar="FILE|BUNDLE", help="An .onnx file, OpenVINO IR (.xml), or a bundle's folder; also files that kdpipe did not make.")
    ],
    profile: Annotated[list[str] | None, typer.Option("--profile", help="What it is for; repeat for several.", show_default="the bundle's own")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="A variant of the profile.", show_default="the profile's own choice")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a model file against the rules of profiles: each finding with node, rule, reason and remedy; exit 3 where the file is unusable there."""
    from kdpipe.pipeline.target_check import check as run

    checked = run(subject, profile or (), variant=variant)
    exit_code = max(it.exit_code for it in checked)
    if as_json:
        print_json({"checks": [it.as_json_value() for it in checked], "exit_code": exit_code})
    else:
        for it in checked:
            _show_check(it)
    raise typer.Exit(exit_code)


@targets.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Its name; the file is NAME.toml.")],
    extends: Annotated[str, typer.Option("--extends", help="The profile that it is like: one that ships, or a .toml.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where to write it.", show_default="the current folder")] = Path(),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a commented profile of your own on top of another one; never overwrites a file."""
    from kdpipe.pipeline.target_new import new as write

    path = write(name, extends=extends, folder=folder)
    if as_json:
        print_json({"path": str(path)})
        return
    print(f"wrote {path}")
    print(f'next: edit it, then in kdpipe.toml: [targets.{path.stem}] profile = "{path.name}"; kdpipe targets show {path} tells what it is', file=sys.stderr)


def _here(profile: "Profile") -> dict[str, str]:
    """What this machine can do for the target, in words."""
    from kdpipe.targets.devices.agent import runtimes
    from kdpipe.targets.instruction_sets import probe
    from kdpipe.targets.runtimes.runtime import runtime_version

    missing = [need.name for need in profile.runtimes if runtime_version(need.name) is None]
    built = (
        f"cannot be built here: not installed: {', '.join(missing)}"
        if missing
        else f"can be built here, checked in {', '.join(need.name for need in profile.runtimes)}"
    )
    why_not = profile.why_not_measurable(probe(), runtimes=runtimes())
    exact = profile.why_not_exact(probe())
    return {
        "build": built,
        "latency": why_not or "latency can be measured here",
        "quality": exact or "quality here is quality there, as far as the CPU's integers go",
    }


def _show_check(it: "Checked") -> None:
    errors, warnings = len(it.errors), len(it.findings) - len(it.errors)
    variant = "" if it.profile.variant_name == "default" else f"-{it.profile.variant_name}"
    print(f"{it.file} for {it.profile.name}{variant}: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}")
    groups: dict[tuple[str, ...], list[str]] = {}
    for finding in it.findings:
        groups.setdefault((finding.severity, finding.rule, finding.reason, finding.remedy), []).append(finding.node)
    if groups:
        shown = table("", "rule", "node", "reason", "do")
        for (severity, rule, reason, remedy), nodes in sorted(groups.items(), key=lambda group: group[0][0]):
            more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
            shown.add_row(severity, rule, ", ".join(nodes[:_NAMED]) + more, reason, remedy)
        print_table(shown)
    for answer in it.answers:
        print(answer)
    print(f"open: {it.open_claims}")


def _counted(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_told, value)) or "–"
    if isinstance(value, dict):  # a runtime: its name, its versions, and the switches that are on
        return " ".join(key if each is True else str(each) for key, each in value.items() if each not in (None, False))
    return str(value).lower() if isinstance(value, bool) else str(value)
