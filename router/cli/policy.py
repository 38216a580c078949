"""`polyphase policy`: check, test, compare and tune policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from router.cli import console
from router.cli.options import POSITIVE
from router.cli.trouble import BAD_CONFIG, RUN_FAILED

EPILOG = """
\b
Examples:
  polyphase policy lint deploy/policies/*.toml
  polyphase policy test tests/policies/scenes
  polyphase policy diff predicted mine.toml --fleet mixed --workload chat
  polyphase policy tune --policy predicted --workload chat --fleet mixed --budget 60 -o tuned.toml
"""
JSON = click.option(
    "--json", "json_to", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE",
    help="Write the result as JSON; - is standard output.",
)  # fmt: skip
FLEET = click.option("--fleet", default="mixed", show_default=True, metavar="NAME|FILE", help="Fleet.")


@click.group(epilog=EPILOG)
def command() -> None:
    """Check, test, compare and tune policies, without a daemon."""


@command.command("lint")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings.")
@JSON
def lint_command(files: Sequence[Path], strict: bool, json_to: str | None) -> None:
    """Say everything that is wrong with policy FILES, and what to write instead.

    Exit code 78 for a file that does not load; warnings are settings without effect or that contradict.
    """
    from router.tune.lint import Severity, lint

    found = {path: lint(_text(path)) for path in files}
    for path, findings in found.items():
        for one in findings:
            click.echo(f"{path}{f':{one.line}' if one.line else ''}: {one.severity}: {one.text}")
        if not findings and json_to != "-":
            click.echo(f"{path}: good")
    listed = [
        {"file": str(path), "line": one.line, "severity": one.severity, "text": one.text}
        for path, findings in found.items()
        for one in findings
    ]
    console.write_json({"findings": listed}, json_to)
    worst = {one.severity for findings in found.values() for one in findings}
    if Severity.ERROR in worst:
        raise SystemExit(BAD_CONFIG)
    if strict and worst:
        raise SystemExit(RUN_FAILED)


@command.command("test")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--policy", metavar="NAME|FILE", help="Test this policy instead of those in the files.")
@click.option("--rewrite", is_flag=True, help="Write the answers into the files as what is expected.")
@click.option("--quiet", is_flag=True, help="Name failures only.")
@JSON
def test_command(
    paths: Sequence[Path], policy: str | None, rewrite: bool, quiet: bool, json_to: str | None
) -> None:
    """Run the scenes in files or folders: a snapshot and where its request is expected to go.

    Exit codes: 0 all as expected; 1 some are not; 78 a file cannot be read.
    """
    from router.tune import trial
    from router.tune.scene_file import policy_text

    if rewrite and policy is not None:
        raise click.UsageError("--rewrite writes what the files' own policies answer; leave --policy out")
    given = None if policy is None else policy_text(policy)
    ran = [trial.run_file(file, given) for path in paths for file in trial.files_below(path)]
    out = console.consoles(json_to)
    for file, outcomes in ran:
        for one in outcomes:
            if not one.passed or not quiet:
                out.print(_told(file.path, one), markup=False)
    outcomes = [one for _, many in ran for one in many]
    failed = sum(not one.passed for one in outcomes)
    out.print(f"{len(outcomes) - failed} of {len(outcomes)} as expected", markup=False)
    console.write_json({"cases": [_as_dict(one) for one in outcomes]}, json_to)
    if rewrite:
        changed = sum(trial.rewrite(file, many) for file, many in ran)
        out.print(f"{changed} expectations rewritten", markup=False)
    elif failed:
        raise SystemExit(RUN_FAILED)


def _told(path: Path, one: Any) -> str:
    head = f"{'ok  ' if one.passed else 'FAIL'} {path.name}: {one.case.name}"
    if one.passed:
        return head
    expect = one.case.expect.text if one.case.expect else "nothing: add expect = "
    return (
        f"{head}\n       expected  {expect}\n       got       {one.got or 'a failure'}\n"
        f"       {one.case.policy.name}: {one.why}"
    )


def _as_dict(one: Any) -> dict[str, Any]:
    expect = one.case.expect.text if one.case.expect else None
    return {"case": one.case.name, "passed": one.passed, "expected": expect, "got": one.got, "why": one.why}


@command.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@FLEET
@click.option("--workload", metavar="NAME|FILE", help="Compare placements and outcomes on this workload too.")
@click.option("--requests", type=click.IntRange(10, 1 << 20), default=1000, show_default=True, metavar="N")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs per policy.")
@JSON
def diff_command(first: str, second: str, json_to: str | None, **given: Any) -> None:
    """Tell policies A and B (names or files) apart: parameters, placements, outcomes.

    Placements are compared at the decisions of A, on the same snapshots; outcomes on the same arrivals.
    """
    from router.cli.policy_work import compare

    report, parts = compare(first, second, given)
    out = console.consoles(json_to)
    for part in parts:
        out.print(part)
    console.write_json(report, json_to)


@command.command("tune")
@click.option("--policy", default="predicted", show_default=True, metavar="NAME|FILE", help="Start from it.")
@click.option("--workload", default="chat", show_default=True, metavar="NAME|FILE", help="Workload.")
@FLEET
@click.option("--rate-scale", type=POSITIVE, default=1.0, show_default=True, metavar="X", help="Load factor.")
@click.option(
    "--budget", type=click.IntRange(1, 100_000), default=60, show_default=True, metavar="N",
    help="Simulations to spend; short ones count a quarter.",
)  # fmt: skip
@click.option("--requests", type=click.IntRange(40, 1 << 20), default=1000, show_default=True, metavar="N",
              help="Of a full simulation.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Of the workload.")
@click.option("--search-seed", type=click.IntRange(0, 1 << 62), default=1, show_default=True)
@click.option(
    "--prefer", type=click.Choice(["goodput", "cost", "energy"]), default="goodput", show_default=True,
    help="What decides between settings that none beats in everything.",
)  # fmt: skip
@click.option(
    "--param", "narrowed", multiple=True, metavar="KEY[=LOW:HIGH]",
    help="Search this parameter only, over a narrower range; may be repeated.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.toml",
              help="Write the chosen policy, with its provenance.")  # fmt: skip
@JSON
def tune_command(json_to: str | None, output: Path | None, **given: Any) -> None:
    """Search the declared ranges of a policy's parameters on a workload, in simulation.

    Shows the settings that none beats in goodput, dollars and joules, and checks the chosen one against the
    start on seeds that the search did not see.
    """
    from router.cli.policy_work import tuned

    out = console.consoles(json_to)
    report, parts, text = tuned(given, out)
    for part in parts:
        out.print(part)
    if output is not None:
        output.write_text(text, encoding="utf-8")
        out.print(f"Policy: {output}", markup=False)
    console.write_json(json.loads(json.dumps(report)), json_to)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
