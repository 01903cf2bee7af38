"""`kdpipe cache`: the store's commands parse, call and print."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kdpipe.pipeline.options import AsJson, Debug, Project, existing
from kdpipe.pipeline.printing import print_json, print_table, table

cache = typer.Typer(help="The store of finished steps: list it, clean it up.")


@cache.command("ls")
def cache_ls(project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """List the finished steps in the store, oldest first, and the teachers' kept logits."""
    from kdpipe.pipeline.cache import entries, kept_logits
    from kdpipe.pipeline.progress import duration
    from kdpipe.pipeline.store import Store

    store = Store(existing(project).resolve())
    found, tables = entries(store), kept_logits(store)
    if as_json:
        print_json({"artifacts": [asdict(entry) for entry in found], "teacher_logits": [asdict(each) for each in tables]})
        return
    artifacts = table("step", "size", "took", "finished", "used", "fingerprint")
    for entry in found:
        artifacts.add_row(entry.step, _size(entry.size_bytes), duration(entry.seconds), entry.finished, "yes" if entry.used else "no", entry.fingerprint[:12])
    print_table(artifacts)
    if tables:
        print(f"teachers' logits of [distill.cache]: {len(tables)} tables, {_size(sum(each.size_bytes for each in tables))}, last used {tables[-1].used}")


@cache.command("gc")
def cache_gc(
    project: Project = Path(),
    keep_days: Annotated[float, typer.Option("--keep-days", min=0, help="Keep what is younger than this, in days.")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove what the latest builds do not use: artifacts, interrupted work, damaged artifacts, teachers' kept logits."""
    from kdpipe.pipeline.cache import collect, removable
    from kdpipe.pipeline.store import Store

    store = Store(existing(project).resolve())
    removals = (removable if dry_run else collect)(store, keep_days=keep_days)
    total = sum(removal.size_bytes for removal in removals)
    if as_json:
        print_json({"dry_run": dry_run, "freed_bytes": total, "removed": [{**asdict(removal), "folder": str(removal.folder)} for removal in removals]})
        return
    for removal in removals:
        print(f"{removal.what}  {_size(removal.size_bytes)}  {removal.folder.name[:16]}")
    print(f"{'would free' if dry_run else 'freed'} {_size(total)}: {len(removals)} {'place' if len(removals) == 1 else 'places'}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:,.1f} kB"
