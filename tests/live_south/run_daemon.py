"""A daemon as a process of its own: `python -m tests.live_south.run_daemon CONFIG`. Prints its addresses."""

import asyncio
import json
import sys
from pathlib import Path

from router.cli.plug_ins import plug_ins
from router.config import load_config
from router.live.daemon import Daemon


async def main(path: Path) -> None:
    """Serve until a signal."""
    daemon = Daemon(load_config(path), plug_ins())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.run())
        await daemon.serving.wait()
        assert daemon.addresses is not None
        print(json.dumps(daemon.addresses.as_dict()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
