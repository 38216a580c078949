"""`polyphase profile`: list, show and work out hardware profiles."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.text import Text

from backends.catalogue import load_profile, profile_names
from backends.hardware import device_names, load_device, load_shape, shape_names
from backends.models.efficiency import ENGINES
from backends.models.laws import law_of
from backends.models.prior_text import profile_text
from backends.models.profile import Profile, parse_profile
from backends.models.roofline import Prior, prior
from backends.models.shape import KV_BYTES, Dtype
from backends.models.valid_range import range_note, stated_ranges
from router.cli import console

EPILOG = """
\b
Examples:
  polyphase profile ls
  polyphase profile show h100-llama-3.1-8b --batch 64 --context 4096
  polyphase profile new --device h100 --model config.json --tp 2 --dtype fp8 --out mine.toml
"""
COLUMNS = ("PROFILE", "DEVICE", "MODELS", "GRADE", "$/H")
BATCHES = (1, 16, 64, 256)
DEFAULT_CONTEXT = 1024
DEFAULT_PROMPT = 1024

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog=EPILOG)
def command() -> None:
    """List and show hardware profiles, and work out new ones.

    A profile holds the step times of one model on one device, and where they come from.
    """


@command.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List the profiles that ship with the project."""
    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        click.echo(json.dumps([described(profile) for profile in profiles], indent=2))
        return
    table = console.grid(*COLUMNS, words=("DEVICE", "MODELS", "GRADE"))
    for profile in profiles:
        spec = profile.spec
        count = f"{spec.count} x " if spec.count > 1 else ""
        models = ",".join(spec.models)
        grade, price = str(profile.provenance.trust), f"{spec.usd_per_hour:.2f}"
        table.add_row(profile.name, f"{count}{spec.device}", models, grade, price)
    console.consoles(None).print(table)


@command.command("show")
@click.argument("profile", metavar="NAME|FILE")
@click.option("--batch", type=click.IntRange(1, 1 << 16), metavar="N", help="Sequences in a decode step.")
@click.option(
    "--context", type=click.IntRange(1, 1 << 24), metavar="N",
    help=f"Tokens of context of each of them. [default: {DEFAULT_CONTEXT}]",
)  # fmt: skip
@click.option(
    "--prompt", type=click.IntRange(1, 1 << 24), metavar="N",
    help=f"Tokens of a prompt. [default: {DEFAULT_PROMPT}]",
)  # fmt: skip
@json_option
def show(profile: str, batch: int | None, context: int | None, prompt: int | None, as_json: bool) -> None:
    """Show a profile's origin and what it predicts; beyond its data it says so."""
    found = load_profile(profile)
    batches = (batch,) if batch else _batches(found)
    rows = [_prediction(found, one, context or DEFAULT_CONTEXT, prompt or DEFAULT_PROMPT) for one in batches]
    if as_json:
        click.echo(json.dumps({**described(found), "predictions": rows}, indent=2))
        return
    console.consoles(None).print(Group(_origin(found), _predictions(rows), _limits(found)))


@command.command("new")
@click.option(
    "--device", required=True, type=click.Choice(device_names()), metavar="DEVICE",
    help="As in `polyphase hardware ls`.",
)  # fmt: skip
@click.option(
    "--model", required=True, metavar="NAME|FILE",
    help=f"A Hugging Face style config.json, or one of {', '.join(shape_names())}.",
)  # fmt: skip
@click.option(
    "--tp",
    type=click.IntRange(1, 1 << 16),
    metavar="N",
    help="Devices that hold it together. [default: as few as hold it]",
)
@click.option(
    "--dtype",
    type=click.Choice([one.value for one in Dtype]),
    help="Format of the weights. [default: the checkpoint's]",
)
@click.option(
    "--kv-dtype",
    type=click.Choice([one.value for one in KV_BYTES]),
    help="Of the KV cache. [default: fp8 with fp8 and nvfp4 weights, else bf16]",
)
@click.option(
    "--engine", type=click.Choice([*ENGINES, "native"]), help="Whose overhead to add. [default: vllm on GPUs]"
)
@click.option("--name", metavar="NAME", help="Serve the model under this name. [default: the config's]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it there; the default is standard output.",
)
def new(
    device: str,
    model: str,
    tp: int | None,
    dtype: str | None,
    kv_dtype: str | None,
    engine: str | None,
    name: str | None,
    out: Path | None,
) -> None:
    """Work out a profile from a model's config and a device's figures.

    Nothing is measured: every factor and assumption is written into the file. A fleet takes the file with
    profile = "FILE". Calibrate it against a real run before planning with it.
    """
    worked_out = prior(
        load_device(device),
        load_shape(model, name),
        count=tp,
        dtype=Dtype(dtype) if dtype else None,
        kv_dtype=Dtype(kv_dtype) if kv_dtype else None,
        engine=engine,
    )
    text = profile_text(worked_out, datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    checked = parse_profile(text, profile_name(worked_out))
    if out is None:
        click.echo(text, nl=False)
        return
    out.write_text(text, encoding="utf-8")
    click.echo(f"{out}: {headline(checked)}")


def profile_name(worked_out: Prior) -> str:
    """As the shipped profiles are named, with the format and the number of devices where they matter."""
    joined = f"-tp{worked_out.count}" if worked_out.count > 1 else ""
    return f"{worked_out.device.name}-{worked_out.shape.name}-{worked_out.dtype}{joined}"


def headline(profile: Profile) -> str:
    """A profile in a line."""
    spec, law = profile.spec, law_of(profile.spec)
    decode, prefill = console.duration(law.decode_step_s(1, 1024)), console.duration(law.prefill_s(1024))
    return (
        f"{spec.count} x {spec.device}, {spec.models[0]}: decode {decode} "
        f"a step at 1k context, prefill {prefill} for 1k tokens, KV room for "
        f"{spec.kv_capacity_tokens:,} tokens. Grade {profile.provenance.trust}."
    )


def _batches(profile: Profile) -> tuple[int, ...]:
    """As many as the backend takes, of a few telling ones."""
    most = profile.spec.max_num_seqs
    return tuple(sorted({min(batch, most) for batch in BATCHES}))


def _prediction(profile: Profile, batch: int, context: int, prompt: int) -> dict[str, Any]:
    law, spec = law_of(profile.spec), profile.spec
    step_s = law.decode_step_s(batch, batch * context)
    note = range_note(profile.provenance.valid_range, batch=batch, context=context, prompt=prompt)
    if batch * context > spec.kv_capacity_tokens:
        note = f"{note} The KV of so many tokens does not fit ({spec.kv_capacity_tokens:,} do).".lstrip()
    return {
        "batch": batch,
        "context_tokens": context,
        "prompt_tokens": prompt,
        "decode_step_s": step_s,
        "tokens_per_s": batch / step_s,
        "prefill_s": law.prefill_s(prompt),
        "note": note,
    }


def _origin(profile: Profile) -> Text:
    origin, spec = profile.provenance, profile.spec
    lines = [
        f"{profile.name}: {headline(profile)}",
        f"Source: {origin.source}, {origin.date}",
        f"Error: {origin.fit_error}",
        f"Data: {origin.valid_range}",
        f"KV: {spec.kv_bytes_per_token:,.0f} bytes a token, layout {spec.kv_layout}",
    ]
    return Text("\n".join(lines))


def _predictions(rows: list[dict[str, Any]]) -> Group:
    columns = ("BATCH", "CONTEXT", "STEP", "TOKENS/S", "PROMPT", "PREFILL")
    table = console.grid("", *columns, title="\nPredicted")
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    for row in rows:
        table.add_row(
            "~" if row["note"] else "",
            f"{row['batch']:,}",
            f"{row['context_tokens']:,}",
            console.duration(row["decode_step_s"]),
            f"{row['tokens_per_s']:,.0f}",
            f"{row['prompt_tokens']:,}",
            console.duration(row["prefill_s"]),
        )
    return Group(table, *(Text(f"~ {note}", style="yellow") for note in notes))


def _limits(profile: Profile) -> Text:
    assumed = "".join(f"\n  {one}" for one in profile.provenance.assumptions)
    noted = "".join(f"\n  {one}" for one in profile.provenance.notes)
    return Text(f"\nAssumed:{assumed}\nNotes:{noted}" if noted else f"\nAssumed:{assumed}")


def described(profile: Profile) -> dict[str, Any]:
    """A profile as JSON values."""
    spec, origin = profile.spec, profile.provenance
    return {
        "name": profile.name,
        "kind": spec.kind,
        "device": spec.device,
        "count": spec.count,
        "models": list(spec.models),
        "phases": sorted(spec.phases),
        "binding": spec.binding,
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "kv_capacity_tokens": spec.kv_capacity_tokens,
        "usd_per_hour": spec.usd_per_hour,
        "step": asdict(spec.step),
        "provenance": asdict(origin),
        "ranges": {name: list(ends) for name, ends in stated_ranges(origin.valid_range).items()},
    }
