"""From a [[backend]] with an engine to the link the router reaches it by. Opens nothing itself."""

from __future__ import annotations

from backends.engines.adapters import ADAPTERS, Site
from backends.engines.lane import EngineLane
from backends.engines.settings import checked_url, read_options
from backends.engines.spec import engine_spec
from router.config import StaticBackend
from router.errors import ConfigError
from router.live.lane import LaneContext
from router.live.southbound import Opener


def engine_opener(backend: StaticBackend) -> Opener:
    """How an engine of the configuration is reached. Raises ConfigError for one that is set up wrongly."""
    where = f"backend {backend.id!r}"
    adapter = ADAPTERS.get(backend.engine)
    if adapter is None:
        known = ", ".join(ADAPTERS)
        raise ConfigError(f"{where}: there is no engine {backend.engine!r}; known are {known}.")
    options = read_options(adapter.shape, backend.options, where)
    url = checked_url(backend.url, options, where)
    spec = engine_spec(backend.id, backend.profile, backend.spec, adapter.connector, where)
    try:
        options.place(url)  # a credential that is not there is known before the daemon starts
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error

    def open_link(_: str, address: str, context: LaneContext) -> EngineLane:
        site = Site(url, spec, options, context.times.decode_stall_s)
        return EngineLane(spec, address, context, lambda: adapter.open(site), options.rules())

    return open_link
