"""`polyphase worker`: a model on a device of this machine, as a backend of the router."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import click

from router.address import IPNetwork
from router.cli.children import announce, stop_with_parent
from router.cli.mock import networks
from router.cli.options import address
from router.cli.trouble import BAD_CONFIG, Trouble

DEFAULT_LISTEN = "127.0.0.1:7620"
EPILOG = """
\b
Examples:
  polyphase worker --model ./llama-3.2-1b --register 127.0.0.1:7601
  polyphase worker --model ./llama-3.2-1b --role prefill --device cuda:0 --register 127.0.0.1:7601
  polyphase worker --model ./config.json --random-weights 7 --dtype fp32

\b
Exit codes: 0 drained; 78 the model, the device or an address cannot be used.
"""


@click.command(epilog=EPILOG)
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory with config.json and safetensors; with --random-weights a config.json is enough.",
)
@click.option("--name", default="", metavar="NAME", help="Model name in requests. [default: the directory's]")
@click.option("--id", "backend", metavar="ID", help="Backend id. [default: NAME-ROLE]")
@click.option(
    "--role",
    type=click.Choice(["prefill", "decode", "both"]),
    default="both",
    show_default=True,
    help="Phases to offer.",
)
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="Precision of weights, computation and KV.",
)
@click.option(
    "--random-weights",
    "random_seed",
    type=click.IntRange(0, (1 << 63) - 1),
    metavar="SEED",
    help="Draw the weights instead of reading them.",
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A tokenizer.json, for prompts of text; needs the package tokenizers.",
)
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads of a step.")
@click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    callback=address,
    help="host:port; port 0 takes a free one.",
)
@click.option(
    "--advertise", metavar="ADDR", help="Address by which routers and peers reach the worker, if another."
)
@click.option(
    "--register",
    "register_at",
    metavar="ADMIN",
    help="Announce the worker to the router with this admin address.",
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    callback=networks,
    metavar="CIDR",
    help="Pull KV from workers in this network; repeatable. [default: loopback]",
)
@click.option(
    "--block-tokens", type=click.IntRange(1, 1024), default=16, show_default=True, help="Tokens of a KV page."
)
@click.option(
    "--kv-tokens", type=click.IntRange(16), metavar="N", help="Room for KV. [default: what fits in memory]"
)
@click.option(
    "--max-num-seqs",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Sequences of a step.",
)
@click.option(
    "--max-num-batched-tokens",
    type=click.IntRange(1, 1 << 20),
    default=2048,
    show_default=True,
    help="Tokens of a step.",
)
@click.option(
    "--max-context-tokens",
    type=click.IntRange(2),
    metavar="N",
    help="Longest context. [default: the model's]",
)
@click.option("--profile", metavar="NAME|FILE", help="Calibrated times; otherwise measured roughly at start.")
@click.option("--zone", default="", metavar="ZONE", help="Where the worker is, for the router's links.")
@click.option(
    "--usd-per-hour", type=click.FloatRange(0, 1e6), default=0.0, metavar="USD", help="Price of the device."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What goes to standard error.",
)
@click.option("--supervised", is_flag=True, hidden=True)
def command(**given: Any) -> None:
    """Run a worker with a real model: Llama architectures, in PyTorch.

    It prefills, hands KV over to peers and takes theirs, and decodes, as its role says. Prompts and answers
    are token ids. It needs the extra polyphase[torch].
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]

        from backends.reference import assembly
    except ImportError as error:
        raise Trouble(
            f"{error.name} is not installed. Nothing was started. Install polyphase[torch].", BAD_CONFIG
        ) from error
    logging.basicConfig(level=given.pop("log_level").upper())
    if (threads := given.pop("threads")) is not None:
        torch.set_num_threads(threads)
    serving = {
        name: given.pop(name) for name in ("listen", "advertise", "register_at", "allowed", "supervised")
    }
    ready = assembly.prepare(_setting(**given))
    asyncio.run(_serve(ready, **serving))


def _setting(*, dtype: str, profile: str | None, backend: str | None, name: str, **rest: Any) -> Any:
    from backends.catalogue import load_profile
    from backends.reference.assembly import Setting
    from backends.reference.precision import Precision

    path: Path = rest["model"].resolve()
    name = name or (path if path.is_dir() else path.parent).name
    return Setting(
        backend=backend or f"{name}-{rest['role']}",
        name=name,
        precision=Precision(dtype),
        profile=None if profile is None else load_profile(profile),
        **rest,
    )


async def _serve(
    ready: Any,
    listen: str,
    advertise: str | None,
    register_at: str | None,
    allowed: tuple[IPNetwork, ...],
    supervised: bool,
) -> None:
    from backends.reference.device import Device
    from backends.shell.run import run_workers
    from backends.shell.server import WorkerServer

    def started(server: WorkerServer) -> None:
        if supervised:
            announce({"worker": server.address})
        else:
            click.echo(f"{ready.spec.id} listens on {server.address}")

    device = Device()
    server = WorkerServer([ready.spec], ready.boot(device), listen, advertise, allowed)
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(stop_with_parent()) if supervised else None
            await run_workers(server, register_at, started=started)
            if watching is not None:
                watching.cancel()
    finally:
        await device.close()
