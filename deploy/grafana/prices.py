"""The row of price-directed routing; collapsed, since only some policies take prices. Values only."""

from __future__ import annotations

from deploy.grafana.panels import Panel, Query, Row, quantiles, rate

PRICES = Row(
    "Prices",
    [
        Panel(
            "What came of asking for prices",
            [Query(rate("price_problems_total", "", "outcome"), "{{outcome}}")],
            "ops",
            "Anything but `solved` leaves the last prices in force until they are too old.",
        ),
        Panel(
            "Time to work prices out",
            [
                Query(quantiles("price_solve_seconds", "", "", 0.5), "p50"),
                Query(quantiles("price_solve_seconds", "", "", 0.99), "p99"),
            ],
            "s",
            "In a thread of their own; after 5 s the answer is dropped.",
        ),
        Panel(
            "Age of the prices",
            [Query("max(polyphase_price_age_seconds)", "age")],
            "s",
            "Since the load that they were worked out for; 0 before the first.",
        ),
    ],
    collapsed=True,
)
