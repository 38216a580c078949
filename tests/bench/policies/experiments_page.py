"""The part of the page about the experiments beside the grid."""

from __future__ import annotations

from tests.bench.policies.additions import LOAD
from tests.bench.policies.energy import FLEET, Capped
from tests.bench.policies.field import CHAMPION
from tests.bench.policies.findings import Findings
from tests.bench.policies.jitter import DOCUMENT_TOKENS, LIMIT, PREFILL_LOAD
from tests.bench.policies.markdown import ms, number, table
from tests.bench.policies.overload import CROWD_LOAD, FLOOD_LOAD, QUIET_LOAD


def experiments(found: Findings) -> str:
    """One section each; what was not run is left out."""
    parts = [
        _trials(found) if found.trials else "",
        _added(found) if found.added else "",
        _savings(found) if found.savings else "",
        "" if found.capped is None else _capped(found.capped),
        _voices(found) if found.voices else "",
        _crowd(found) if found.floods or found.starved else "",
        _live(found) if found.live else "",
    ]
    return "\n".join(part for part in parts if part)


def _trials(found: Findings) -> str:
    text = (
        "Prompts of 4,000 tokens, 60 out, a worker and one 8 times slower, against the fast one "
        "alone. Measured on Dynamo 1.6.1 with its own mocker: 2.5 to 3.1 times slower in the mean, "
        "5.7 to 6.3 at p99."
    )
    rows = [
        [
            each.policy,
            f"{each.rate_per_s:g}",
            *map(ms, (each.mean_s, each.p99_s, each.alone_mean_s)),
            number(each.mean_ratio),
            number(each.p99_ratio),
            f"{each.slow_share:.0%}",
        ]
        for each in found.trials
    ]
    heads = [
        "policy",
        "requests/s",
        "mean, ms",
        "p99",
        "mean alone",
        "mean ratio",
        "p99 ratio",
        "on the slow one",
    ]
    return table("## Adding a slow worker", text, heads, rows)


def _added(found: Findings) -> str:
    text = (
        "End-to-end latency of the shipped fleets with one backend more over that without it, chat "
        f"at {LOAD:g} of the fleet's own capacity."
    )
    rows = [[a.fleet, a.device, number(a.mean_ratio, 3), number(a.p99_ratio, 3)] for a in found.added]
    heads = ["fleet", "added", "mean ratio", "p99 ratio"]
    return table(f"## Adding any backend (`{CHAMPION}`)", text, heads, rows)


def _savings(found: Findings) -> str:
    text = (
        f"Fleet `{FLEET}` below full load. The baseline is the one that spends least of those that "
        "attain as much, by each account: device time that requests used; the whole fleet with its "
        "idle power."
    )
    rows = [
        [
            s.workload,
            f"{s.load:g}",
            s.ours,
            f"{s.attainment:.3f}",
            number(s.device_j, 0),
            f"{s.baseline} {s.baseline_device_j:.0f}" if s.baseline else "none attains as much",
            "-" if s.device_saving is None else f"{s.device_saving:.0%}",
            number(s.fleet_j, 0),
            "-" if s.fleet_saving is None else f"{s.fleet_saving:.0%}",
        ]
        for s in found.savings
    ]
    heads = [
        "workload",
        "load",
        "ours",
        "attained",
        "J/good",
        "least baseline",
        "saved",
        "fleet J/good",
        "saved",
    ]
    return table("## Energy", text, heads, rows)


def _capped(held: Capped) -> str:
    text = (
        f"A cap of {held.cap_w / 1e3:.2f} kW on fleet `{held.fleet}`, which draws "
        f"{held.uncapped_w / 1e3:.2f} kW over 10 s without one: at most {held.most_w / 1e3:.2f} kW "
        f"with it ({held.excess:+.1%}). Attained {held.attainment:.3f}, without the cap "
        f"{held.uncapped_attainment:.3f}."
    )
    return table("## Power cap", text, (), ())


def _voices(found: Findings) -> str:
    text = (
        f"Callers beside documents of {DOCUMENT_TOKENS:,} tokens at {PREFILL_LOAD:g} of the fleet's "
        f"capacity. The limit is {LIMIT:g} for p99 over p50 of the voices' TPOT with 95 % of the "
        "calls answered. Beside it the same of all gaps between tokens, and the share of calls whose "
        "own gaps hold it: stricter, and out of reach of a call whose first token comes from another "
        "backend, for the gap in which its KV moves."
    )
    rows = [
        [
            v.fleet,
            v.policy,
            number(v.tpot_ratio),
            "yes" if v.holds else "no",
            *(f"{share:.2f}" for share in (v.answered, v.ttft_kept)),
            number(v.gap_ratio, 1),
            f"{v.held:.2f}",
            f"{v.documents_met:.2f}",
        ]
        for v in found.voices
    ]
    heads = ["fleet", "policy", "TPOT p99/p50", "holds", "answered", "TTFT kept", "gaps p99/p50"]
    heads += ["calls that hold", "documents met"]
    return table("## Voices beside documents", text, heads, rows)


def _crowd(found: Findings) -> str:
    text = (
        f"Three tenants who together ask for {QUIET_LOAD:g} of the capacity, alone and beside one who "
        f"asks for {FLOOD_LOAD:g} times the capacity: p99 of the three, and the share that met all "
        "objectives."
    )
    rows = [
        [
            f.policy,
            f"{ms(f.ttft_p99_alone_s)} / {ms(f.ttft_p99_s)}",
            f"{ms(f.e2e_p99_alone_s)} / {ms(f.e2e_p99_s)}",
            number(f.ratio),
            f"{f.met_alone:.3f} / {f.met:.3f}",
        ]
        for f in found.floods
    ]
    heads = ["policy", "TTFT p99 alone / beside, ms", "E2E p99, ms", "worse ratio", "met"]
    flood = table("## A flood, and bulk beside a crowd", text, heads, rows)
    bulk = found.starved
    if bulk is None:
        return flood
    return flood + (
        f"\nBulk beside interactive requests at {CROWD_LOAD:g} times the capacity: {bulk.served} of"
        f" {bulk.arrived} served, the longest wait\n{bulk.longest_wait_s:.1f} s, the longest time without"
        f" a start while bulk waited {bulk.longest_drought_s:.1f} s (the core's bound: {bulk.bound_s:g} s)."
    )


def _live(found: Findings) -> str:
    text = (
        "The daemon and a mock fleet over gRPC, recorded; the recorded policy simulated on the "
        "recorded arrivals with delays measured on every other request, and judged on the rest "
        "(`polyphase whatif`)."
    )
    rows = [
        [
            str(each["cell"]),
            str(each["policy"]),
            str(each["requests"]),
            *(f"{each[name]:.3f}" for name in ("measured_met", "simulated_met")),
            f"{each['measured_e2e_mean_s'] * 1e3:.0f} / {each['simulated_e2e_mean_s'] * 1e3:.0f}",
            f"{each['error']:.1%}",
            "yes" if each["confirmed"] else "no",
        ]
        for each in found.live
    ]
    heads = ["cell", "policy", "requests", "met, live", "met, simulated", "mean E2E live / simulated, ms"]
    heads += ["largest error of p50, p90, p99", "confirmed"]
    return table("## Live", text, heads, rows)
