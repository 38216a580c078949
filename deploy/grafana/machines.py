"""What the fleet and the router do: utilisation, decisions, handoffs, the daemon itself."""

from __future__ import annotations

from deploy.grafana.panels import BACKEND, KIND, Panel, Query, Row, quantiles, rate

HARDWARE = Row(
    "What does the hardware do?",
    [
        Panel(
            "Busy, by kind and phase",
            [Query(f"kind_phase:polyphase_backend_busy:ratio_1m{{{KIND}}}", "{{kind}} {{phase}}")],
            "percentunit",
            "Share of wall time that devices of a kind work on a phase; exact: counters of busy seconds.",
            width=12,
            maximum=1.0,
        ),
        Panel(
            "Busy, by backend",
            [
                Query(
                    f"sum by (backend) (backend_phase:polyphase_backend_busy:ratio_1m{{{BACKEND}}})",
                    "{{backend}}",
                )
            ],
            "percentunit",
            "Prefill and decode together.",
            width=12,
            maximum=1.0,
        ),
        Panel(
            "KV cache in use",
            [Query(f"backend:polyphase_backend_kv_used:ratio{{{BACKEND}}}", "{{backend}}")],
            "percentunit",
            "Near 1, sequences are preempted.",
            maximum=1.0,
        ),
        Panel(
            "In flight, by backend and phase",
            [
                Query(
                    f"sum by (backend, phase) (polyphase_backend_in_flight{{{BACKEND}}}) > 0",
                    "{{backend}} {{phase}}",
                )
            ],
            "short",
            "By what the router commanded and heard of; always fresh.",
        ),
        Panel(
            "Slots in use",
            [
                Query(
                    f'max by (backend) (polyphase_backend_slots{{state="used", {BACKEND}}})'
                    f' / max by (backend) (polyphase_backend_slots{{state="capacity", {BACKEND}}})',
                    "{{backend}}",
                )
            ],
            "percentunit",
            "Running sequences over those a backend may run, as it reports.",
            maximum=1.0,
        ),
        Panel(
            "Queued at the backend",
            [Query(f"max by (backend) (polyphase_backend_waiting_sequences{{{BACKEND}}})", "{{backend}}")],
            "short",
            "Sequences that wait inside a worker, where no policy can move them any more.",
        ),
        Panel(
            "Output tokens, by kind",
            [Query(rate("backend_tokens_total", f'phase="decode", {BACKEND}', "kind"), "{{kind}}")],
            "suffix: tok/s",
            "Counted as requests end, so it lags by a request's length.",
            stacked=True,
        ),
        Panel(
            "Preemptions",
            [Query(rate("backend_preemptions_total", BACKEND, "backend"), "{{backend}}")],
            "ops",
            "Sequences thrown out of a full KV cache, to be computed again.",
        ),
        Panel(
            "Backends by state",
            [Query("sum by (state) (max by (backend, state) (polyphase_backend_state)) > 0", "{{state}}")],
            "short",
            "Only ready backends get new work.",
            stacked=True,
        ),
        Panel(
            "Ready backends by phase",
            [Query('min by (phase) (polyphase_phase_backends{state="ready"})', "{{phase}}")],
            "short",
            "At zero, requests wait until their deadline.",
        ),
        Panel(
            "Sub-phases of split decode",
            [
                Query(
                    f"max by (backend, sub_phase) "
                    f"(rate(polyphase_backend_sub_phase_busy_seconds_total{{{BACKEND}}}[$__rate_interval]))",
                    "{{backend}} {{sub_phase}}",
                )
            ],
            "percentunit",
            "Utilisation of attention devices, FFN devices and their network; the highest is the bottleneck.",
        ),
        Panel(
            "Loading models",
            [
                Query(
                    "max by (backend) "
                    f"(rate(polyphase_backend_loading_seconds_total{{{BACKEND}}}[$__rate_interval])) > 0",
                    "{{backend}}",
                )
            ],
            "percentunit",
            "Share of wall time in which a backend loads or compiles another model instead of serving.",
        ),
        Panel(
            "Power, by kind",
            [Query(rate("backend_energy_joules_total", BACKEND, "kind"), "{{kind}}")],
            "watt",
            "As the workers report it, idle included.",
            stacked=True,
        ),
    ],
)

DECISIONS = Row(
    "How does the router decide?",
    [
        Panel(
            "Decisions, by policy and reason",
            [Query(rate("decisions_total", "", "policy, reason"), "{{policy}} {{reason}}")],
            "ops",
            "Placements booked; a late binding counts as well.",
            stacked=True,
        ),
        Panel(
            "Pairs of hardware",
            [
                Query(
                    rate("splits_total", "", "prefill_kind, decode_kind"),
                    "{{prefill_kind}} → {{decode_kind}}",
                )
            ],
            "reqps",
            "Finished requests by where prefill and decode ran.",
            stacked=True,
        ),
        Panel(
            "Decision time",
            [
                Query(quantiles("decision_seconds", "", "policy", 0.5), "{{policy}} p50"),
                Query(quantiles("decision_seconds", "", "policy", 0.99), "{{policy}} p99"),
            ],
            "s",
            "One answer of the policy.",
        ),
        Panel(
            "Measured over predicted, median",
            [Query(quantiles("prediction_ratio", "", "policy, latency", 0.5), "{{policy}} {{latency}}")],
            "none",
            "1 is a perfect prediction; above, requests take longer than the policy thinks.",
        ),
        Panel(
            "Drift of backends",
            [
                Query(
                    f"max by (backend, phase) (polyphase_backend_model_drift_ratio{{{BACKEND}}})",
                    "{{backend}} {{phase}}",
                )
            ],
            "none",
            "Learned over declared time of a reference prefill and decode step; 2 is twice as slow.",
            width=12,
        ),
        Panel(
            "Observed over tracked, by backend",
            [
                Query(
                    f"max by (backend, work) (polyphase_backend_model_fit_ratio{{{BACKEND}}})",
                    "{{backend}} {{work}}",
                )
            ],
            "none",
            "1: the tracked model explains what the backend reports; off for long, another law holds.",
            width=12,
        ),
        Panel(
            "Policy faults",
            [Query(rate("policy_faults_total", "", "policy, fault"), "{{policy}} {{fault}}")],
            "ops",
            "Answers that could not be used; the fallback decided.",
        ),
        Panel(
            "Requests under way, by stage",
            [Query("sum by (stage) (polyphase_requests_in_progress)", "{{stage}}")],
            "short",
            "Where live requests are at this moment.",
            stacked=True,
        ),
    ],
)

HANDOFFS = Row(
    "Handoffs of KV",
    [
        Panel(
            "KV moved",
            [Query(rate("handoff_bytes_total", "", "from_kind, to_kind"), "{{from_kind}} → {{to_kind}}")],
            "Bps",
            "Between workers; it never passes the router.",
        ),
        Panel(
            "Time on the link, p99",
            [
                Query(
                    quantiles("handoff_transfer_seconds", "", "from_kind, to_kind", 0.99),
                    "{{from_kind}} → {{to_kind}}",
                )
            ],
            "s",
            "As the pulling worker measured it.",
        ),
        Panel(
            "Failed handoffs",
            [
                Query(
                    rate("handoff_failures_total", "", "from_kind, to_kind, reason"),
                    "{{from_kind}} → {{to_kind}} {{reason}}",
                )
            ],
            "ops",
            "Attempts that ended between prefill and decode.",
        ),
    ],
)

ROUTER = Row(
    "The router itself",
    [
        Panel(
            "Event loop lag",
            [
                Query(quantiles("event_loop_lag_seconds", "", "instance", 0.5), "{{instance}} p50"),
                Query(quantiles("event_loop_lag_seconds", "", "instance", 0.99), "{{instance}} p99"),
            ],
            "s",
            "How late a timer runs: every token waits as long.",
        ),
        Panel(
            "Lateness of deadlines",
            [Query(quantiles("driver_lateness_seconds", "", "instance", 0.99), "{{instance}} p99")],
            "s",
            "Between a deadline of the core and its being served.",
        ),
        Panel(
            "Arrivals, by priority",
            [Query(rate("arrivals_total", "", "priority"), "{{priority}}")],
            "reqps",
            "Valid requests that came in.",
            stacked=True,
        ),
        Panel(
            "Queue, by priority",
            [Query("sum by (priority) (polyphase_queue_depth)", "{{priority}}")],
            "short",
            "Requests that wait for a place.",
            stacked=True,
        ),
        Panel(
            "Wait, p99, by priority",
            [
                Query(
                    "histogram_quantile(0.99, sum by (priority, le) "
                    "(rate(polyphase_queue_wait_seconds_bucket[$__rate_interval])))",
                    "{{priority}}",
                )
            ],
            "s",
            "Time in the queue phase of requests that ended.",
        ),
        Panel(
            "Places given up, by priority",
            [Query(rate("gave_way_total", "", "priority"), "{{priority}}")],
            "reqps",
            "Requests whose place was taken back for a higher class; none unless admission.preempt is on.",
        ),
        Panel(
            "Configuration",
            [
                Query(
                    "min by (instance) (polyphase_config_last_reload_success)",
                    "{{instance}} last read was valid",
                ),
                Query(
                    'sum by (result) (increase(polyphase_config_reloads_total{result="failed"}[1h]))',
                    "failed, 1 h",
                ),
            ],
            "short",
            "0: the last configuration was refused and the one before is in force.",
        ),
        Panel(
            "Versions",
            [Query("count by (version) (polyphase_build_info)", "{{version}}")],
            "short",
            "Routers by version.",
        ),
    ],
    collapsed=True,
)
