"""Histogram bucket bounds, in the unit of their metric. Values only.

The bounds of the OpenTelemetry generative-AI server metrics are kept where they are fine enough, so that
dashboards built on those transfer; they are extended downwards for accelerators that emit a token in a
quarter of a millisecond (the convention's first TPOT bound is 10 ms) and upwards for reasoning runs.
"""

from __future__ import annotations

from typing import Final

TTFT_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
)
"""Time to first token: 1 ms to 320 s."""

TPOT_S: Final = (
    *(0.0001, 0.00015, 0.0002, 0.00025, 0.0003, 0.0004, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005),
    *(
        0.0075,
        0.01,
        0.015,
        0.02,
        0.025,
        0.03,
        0.04,
        0.05,
        0.075,
        0.1,
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.75,
        1.0,
        2.5,
    ),
)
"""Time per output token: 0.1 ms (10,000 tokens/s) to 2.5 s."""

PHASE_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36),
)
"""One phase of a request: a 0.1 ms queue to an eleven-minute decode; doubling from 10 ms on."""

E2E_S: Final = (
    *(0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96),
    *(81.92, 163.84, 327.68, 655.36, 1310.72),
)
"""A request from arrival to its last token."""

TRANSFER_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""A KV transfer between two workers."""

DECISION_S: Final = (
    *(0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05),
)
"""A decision of a policy: 5 us to 50 ms."""

LATENESS_S: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
)
"""How late a timer of the daemon ran."""

REQUEST_TOKENS: Final = (
    *(1.0, 8.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0),
    *(65536.0, 131072.0, 262144.0, 1048576.0),
)
"""Tokens of one request, in or out."""

RATIO: Final = (0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
"""Measured over predicted; 1 is a perfect prediction."""
