"""The row of the shadow policy; collapsed, since most routers run none. Values only."""

from __future__ import annotations

from deploy.grafana.panels import Panel, Query, Row, quantiles, rate, share

SHADOW = Row(
    "Shadow policy",
    [
        Panel(
            "Agreement with the live policy",
            [Query(share("shadow_decisions_total", 'verdict="same"', "", "policy"), "{{policy}}")],
            "percentunit",
            "Share of decisions that the shadow would have made in the same way; errors count against it.",
            maximum=1,
        ),
        Panel(
            "Predicted, shadow over live, median",
            [
                Query(
                    quantiles("shadow_prediction_ratio", "", "policy, latency", 0.5), "{{policy}} {{latency}}"
                )
            ],
            "none",
            "Below 1 the shadow promises shorter times for its places than the live policy for its own.",
        ),
        Panel(
            "Decision time of the shadow",
            [
                Query(quantiles("shadow_decision_seconds", "", "policy", 0.5), "{{policy}} p50"),
                Query(quantiles("shadow_decision_seconds", "", "policy", 0.99), "{{policy}} p99"),
            ],
            "s",
            "CPU time of one answer, on a thread of its own.",
        ),
        Panel(
            "Faults of the shadow",
            [Query(rate("shadow_faults_total", "", "policy, fault"), "{{policy}} {{fault}}")],
            "ops",
            "Answers that raised, were slow, or could not have been carried out. They concern no request.",
            width=12,
        ),
        Panel(
            "Skipped by the shadow",
            [Query(rate("shadow_skipped_total", "", "policy, what"), "{{policy}} {{what}}")],
            "ops",
            "Decisions and facts that it was not shown because it was behind: give it a larger share.",
            width=12,
        ),
    ],
    collapsed=True,
)
