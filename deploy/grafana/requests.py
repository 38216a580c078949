"""What requests see: health, latency, cost, objectives, errors."""

from __future__ import annotations

from deploy.grafana.panels import (
    BACKEND,
    GREEN_AT_99,
    RED_ABOVE_ZERO,
    SERVED,
    Panel,
    Query,
    Row,
    quantiles,
    rate,
    ratio,
    share,
    stat,
)

OVERVIEW = Row(
    "Is the service well?",
    [
        stat(
            "Requests", rate("requests_total", 'outcome="ok"'), "reqps", "Requests that finished, per second."
        ),
        stat(
            "Succeeded",
            share("requests_total", 'outcome="ok"', 'outcome=~"ok|failed|shed"'),
            "percentunit",
            "Finished, over finished, failed and shed. What clients cancelled or got wrong is not in it.",
            thresholds=GREEN_AT_99,
            decimals=2,
        ),
        stat(
            "Objectives met",
            share("slo_requests_total", 'objective="all", met="true"', 'objective="all"'),
            "percentunit",
            "Requests that finished and met every objective they had. Those without one only have to finish.",
            thresholds=GREEN_AT_99,
            decimals=2,
        ),
        stat(
            "Output tokens",
            rate("tokens_total", 'direction="output"'),
            "suffix: tok/s",
            "Counted as requests end.",
        ),
        stat(
            "$ per million tokens",
            "polyphase:cost_usd_per_million_output_tokens:ratio_5m",
            "currencyUSD",
            "Device time at list price over output tokens, prefill included; idle time is not in it.",
            decimals=2,
        ),
        stat(
            "Energy per token",
            "polyphase:energy_joules_per_output_token:ratio_5m",
            "joule",
            "Energy of the device time over output tokens.",
            decimals=2,
        ),
        stat(
            "Waiting",
            "sum(polyphase_queue_depth)",
            "short",
            "Requests that wait in the router for a place.",
            thresholds=((None, "green"), (50, "orange"), (500, "red")),
        ),
        stat(
            "Lost backends",
            'sum(max by (backend) (polyphase_backend_state{state="lost"})) or vector(0)',
            "short",
            "Backends whose lane is broken.",
            thresholds=RED_ABOVE_ZERO,
        ),
    ],
)

LATENCY = Row(
    "Where does the time of a request go?",
    [
        Panel(
            "Mean request, phase by phase",
            [Query("phase:polyphase_phase_duration_seconds:mean_5m", "{{phase}}")],
            "s",
            "Queue, prefill, handoff and decode stack up to the end-to-end time.",
            width=12,
            stacked=True,
        ),
        Panel(
            "Time to first token",
            [
                Query(quantiles("ttft_seconds", SERVED, "kind", 0.5), "{{kind}} p50"),
                Query(quantiles("ttft_seconds", SERVED, "kind", 0.99), "{{kind}} p99"),
            ],
            "s",
            "From arrival to the first token at the client's stream, by the kind that ran prefill.",
            width=6,
        ),
        Panel(
            "Time per output token",
            [
                Query(quantiles("tpot_seconds", SERVED, "kind", 0.5), "{{kind}} p50"),
                Query(quantiles("tpot_seconds", SERVED, "kind", 0.99), "{{kind}} p99"),
            ],
            "s",
            "Mean over the tokens after the first of a request, by the kind that ran decode.",
            width=6,
        ),
        *(
            Panel(
                f"{phase.capitalize()} p99 by kind",
                [
                    Query(
                        quantiles("phase_duration_seconds", f'phase="{phase}", {SERVED}', "kind", 0.99),
                        "{{kind}}",
                    )
                ],
                "s",
                what,
                width=6,
            )
            for phase, what in (
                ("queue", "In the router and in front of the device. Kind none: never placed."),
                ("prefill", "Computing the prompt's KV cache."),
                ("handoff", "KV on its way to another backend; only requests that had one."),
                ("decode", "From the KV's arrival to the last token."),
            )
        ),
        Panel(
            "End to end",
            [
                Query(quantiles("e2e_seconds", SERVED, "model", 0.5), "{{model}} p50"),
                Query(quantiles("e2e_seconds", SERVED, "model", 0.9), "{{model}} p90"),
                Query(quantiles("e2e_seconds", SERVED, "model", 0.99), "{{model}} p99"),
            ],
            "s",
            "From arrival to the last token, by model.",
            width=12,
        ),
        Panel(
            "Decode p99 by backend",
            [
                Query(
                    quantiles("phase_duration_seconds", f'phase="decode", {SERVED}', "backend", 0.99),
                    "{{backend}}",
                )
            ],
            "s",
            "One backend that stands out is slow, or gets the long answers.",
            width=12,
        ),
    ],
)

MONEY = Row(
    "Cost, energy and goodput",
    [
        Panel(
            "Cost, by kind and phase",
            [Query(f"3600 * {rate('cost_usd_total', BACKEND, 'kind, phase')}", "{{kind}} {{phase}}")],
            "currencyUSD",
            "Dollars an hour for the device time that requests took, at list price.",
            stacked=True,
        ),
        Panel(
            "Cost per million tokens, by kind and phase",
            [
                Query(
                    "1e6 * "
                    + ratio(
                        rate("cost_usd_total", BACKEND, "kind, phase"),
                        rate("backend_tokens_total", BACKEND, "kind, phase"),
                    ),
                    "{{kind}} {{phase}}",
                )
            ],
            "currencyUSD",
            "Prefill: per million prompt tokens computed. Decode: per million output tokens.",
        ),
        Panel(
            "Energy per token, by kind and phase",
            [
                Query(
                    ratio(
                        rate("energy_joules_total", BACKEND, "kind, phase"),
                        rate("backend_tokens_total", BACKEND, "kind, phase"),
                    ),
                    "{{kind}} {{phase}}",
                )
            ],
            "joule",
            "Of the device time, idle time aside.",
        ),
        Panel(
            "Goodput, by workload class",
            [Query(rate("goodput_requests_total", "", "workload_class"), "{{workload_class}}")],
            "reqps",
            "Requests that finished and met all they asked for.",
            stacked=True,
        ),
        Panel(
            "Objectives missed, by class and objective",
            [
                Query(
                    share("slo_requests_total", 'met="false"', "", "workload_class, objective"),
                    "{{workload_class}} {{objective}}",
                )
            ],
            "percentunit",
            "Of the requests that had the objective.",
            maximum=1.0,
        ),
        Panel(
            "Tokens of a request, p50 and p99",
            [
                Query(quantiles("request_tokens", "", "direction", 0.5), "{{direction}} p50"),
                Query(quantiles("request_tokens", "", "direction", 0.99), "{{direction}} p99"),
            ],
            "short",
            "The shape of the load.",
        ),
    ],
)

ERRORS = Row(
    "What goes wrong?",
    [
        Panel(
            "Requests, by outcome",
            [Query(f"{rate('requests_total', '', 'outcome')} > 0", "{{outcome}}")],
            "reqps",
            "cancelled: nobody waited. refused: the request was at fault. shed: no room or no time.",
            stacked=True,
        ),
        Panel(
            "Failures, by reason",
            [Query(rate("requests_total", 'outcome!="ok"', "reason") + " > 0", "{{reason}}")],
            "reqps",
            "The public reasons that clients see as ErrorInfo.",
        ),
        Panel(
            "Retries, by phase and reason",
            [Query(rate("retries_total", "", "phase, reason"), "{{phase}} {{reason}}")],
            "ops",
            "Attempts that failed before a token was out, and started anew elsewhere.",
        ),
        Panel(
            "Shed, by reason",
            [Query(rate("sheds_total", "", "reason"), "{{reason}}")],
            "reqps",
            "Turned away before any work was done.",
        ),
        Panel(
            "Cancelled, by stage",
            [Query(rate("cancels_total", "", "stage, reason"), "{{stage}} {{reason}}")],
            "reqps",
            "The later the stage, the more work was for nothing.",
        ),
        Panel(
            "Stray tokens",
            [Query(f"{rate('stray_tokens_total', BACKEND, 'backend, fault')} > 0", "{{backend}} {{fault}}")],
            "suffix: tok/s",
            "zombie: of a stopped sequence, normal. gap and duplicate: the engine is broken.",
        ),
    ],
)
