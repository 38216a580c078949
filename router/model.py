"""The nouns of the router. Values only: no behaviour beyond derived quantities, no I/O, no clock.

Units are in the names. Times are seconds on the monotonic clock of the driver that runs the core;
durations are seconds. Token counts are at least zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from enum import IntEnum, StrEnum

from router.value import value

Seconds = float


class Phase(StrEnum):
    """A leg of the relay race."""

    PREFILL = "prefill"
    DECODE = "decode"


class BackendKind(StrEnum):
    """Family of silicon."""

    GPU = "gpu"
    LPU = "lpu"
    TPU = "tpu"
    NPU = "npu"
    ASIC = "asic"
    CPU = "cpu"


class ModelBinding(StrEnum):
    """How firmly models are bound to a backend."""

    LOADABLE = "loadable"
    COMPILED = "compiled"
    FIXED = "fixed"


class SchedulerKind(StrEnum):
    """How a backend's engine forms its steps (backends/models/forming.py)."""

    CONTINUOUS = "continuous"
    """The batch changes every step; prompts are chunked into it."""
    BUCKETED = "bucketed"
    """Shapes are compiled ahead: batches and prompt chunks round up to them."""
    SLOTS = "slots"
    """A static pipeline: a fixed number of places, and a step that always takes the same time."""
    SINGLE = "single"
    """One sequence at a time."""


class AfdLaw(StrEnum):
    """How far the attention and the FFN side of a split decode overlap (backends/models/afd.py)."""

    SERIAL = "serial"
    CONSERVATIVE = "conservative"
    OPTIMISTIC = "optimistic"


class HandoffMint(StrEnum):
    """Who creates the token by which both sides of a handoff find each other."""

    ENGINE = "engine"
    ROUTER = "router"


class Priority(IntEnum):
    """Order of admission; higher goes first."""

    BULK = 1
    NORMAL = 2
    INTERACTIVE = 3
    SYSTEM = 4


class FinishReason(StrEnum):
    """Why an answer ended well."""

    STOP = "stop"
    LENGTH = "length"


class BackendState(StrEnum):
    """Whether a backend may receive new work. Only READY may."""

    CONNECTING = "connecting"
    READY = "ready"
    CORDONED = "cordoned"
    DRAINING = "draining"
    LOST = "lost"


@value
class ServiceLevel:
    """What a request asks of the service; None means no objective."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    jitter_ratio: float | None = None
    """p99 over p50 of the time per output token, at least 1."""


@value
class Request:
    """What a policy may know of a request.

    The true output length is not here (the workload's oracle has it), and neither is the prompt:
    the driver keeps it, so that no record, log or policy can leak it.
    """

    id: str
    model: str
    prompt_tokens: int
    max_new_tokens: int
    deadline: Seconds = math.inf
    """Monotonic time by which the last token must be out."""
    prompt_is_estimate: bool = False
    """The prompt came as text; prompt_tokens was estimated from its length."""
    workload_class: str = ""
    slo: ServiceLevel = ServiceLevel()
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    session_key: str = ""
    prefix_hashes: tuple[int, ...] = ()
    """One 64-bit hash per full KV block of the prompt, each chained to the one before."""
    max_cost_usd: float | None = None
    max_energy_j: float | None = None


@value
class StepParameters:
    """Parameters of the step model, in seconds (formula and origin: backends/models/latency.py)."""

    base_s: Seconds
    per_sequence_s: Seconds = 0.0
    per_context_token_s: Seconds = 0.0
    saturating_s: Seconds = 0.0
    saturation_tokens: float = 1.0
    prefill_base_s: Seconds = 0.0
    prefill_floor_s: Seconds = 0.0
    per_prefill_token_s: Seconds = 0.0
    per_attention_pair_s: Seconds = 0.0
    noise_sigma: float = 0.0
    """Sigma of the multiplicative lognormal noise of a step."""
    stall_probability: float = 0.0
    """Share of steps that take 2 to 3 times as long, as GPUs now and then do; in [0, 1]."""


@value
class AfdParameters:
    """Decode split between attention and FFN devices: times of one layer, for one micro-batch.

    Law and origin: backends/models/afd.py. With it, the decode terms of the step parameters are the
    serial law of one micro-batch, for readers that know no other.
    """

    layers: int
    law: AfdLaw = AfdLaw.SERIAL
    """The most that may overlap; with too few sequences or micro-batches less does."""
    micro_batches: int = 1
    attention_base_s: Seconds = 0.0
    attention_per_sequence_s: Seconds = 0.0
    attention_per_context_token_s: Seconds = 0.0
    ffn_base_s: Seconds = 0.0
    ffn_per_sequence_s: Seconds = 0.0
    hop_s: Seconds = 0.0
    """Latency of one direction; a layer takes two."""
    dispatch_per_sequence_s: Seconds = 0.0
    """Activations of one token on their way to the FFN side."""
    combine_per_sequence_s: Seconds = 0.0
    """And back."""


@value
class PowerParameters:
    """P = min(idle + joule_per_byte x bytes/s + joule_per_flop x FLOP/s, cap), for the whole backend."""

    idle_w: float = 0.0
    joule_per_byte: float = 0.0
    joule_per_flop: float = 0.0
    cap_w: float = math.inf
    weight_bytes: float = 0.0
    """Bytes of weights read by one step."""
    flop_per_token: float = 0.0
    """FLOPs per token of a forward pass, attention aside."""


@value
class LinkParameters:
    """KV egress of a backend: transfers on it share bandwidth_bytes_per_s."""

    latency_s: Seconds = 0.0
    bandwidth_bytes_per_s: float = math.inf
    ingress_bytes_per_s: float = math.inf
    """What the backend can take in; transfers to it share it."""
    overlap_layers: int = 0
    """Layers of the model when KV leaves layer by layer while prefill goes on; 0 sends it afterwards."""


@value
class ConnectorFlags:
    """How an engine hands KV over; the four flags cover vLLM, SGLang and TensorRT-LLM."""

    concurrent_handoff: bool = False
    requires_peer_binding: bool = False
    handoff_minted_by: HandoffMint = HandoffMint.ENGINE
    first_token_from_prefill: bool = False


@value
class BackendSpec:
    """What a backend is. Static: it changes only when the backend registers anew."""

    id: str
    kind: BackendKind
    device: str
    models: tuple[str, ...]
    phases: frozenset[Phase]
    step: StepParameters
    count: int = 1
    """Devices in the backend."""
    binding: ModelBinding = ModelBinding.LOADABLE
    profile: str = ""
    kv_bytes_per_token: float = 0.0
    kv_capacity_tokens: int = 1 << 40
    block_tokens: int = 16
    kv_layout: str = ""
    """Fingerprint of model revision, dtype, block size and parallelism of the KV cache."""
    kv_accepts: tuple[str, ...] = ()
    """Layouts besides its own that the backend can take over."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_context_tokens: int = 1 << 20
    async_scheduling: bool = False
    """The next step is put together while one runs, as vLLM does by default: what arrives or ends during a
    step counts a step later. A trait of the engine; it does not travel on the wire."""
    link: LinkParameters = LinkParameters()
    connector: ConnectorFlags = ConnectorFlags()
    usd_per_hour: float = 0.0
    power: PowerParameters = PowerParameters()
    zone: str = ""
    scheduler: SchedulerKind = SchedulerKind.CONTINUOUS
    prompt_buckets: tuple[int, ...] = ()
    """BUCKETED: compiled lengths of prompt chunks, ascending; empty means powers of two."""
    batch_buckets: tuple[int, ...] = ()
    """BUCKETED: compiled batches, ascending; empty means powers of two."""
    load_s: Seconds = 0.0
    """Time to bring another of `models` into the device; the first one is there at boot."""
    compile_s: Seconds = 0.0
    """Time to compile another of `models` first, where the binding is COMPILED."""
    kv_conversion: float = 1.0
    """How many times longer a transfer takes when the KV comes in another layout; at least 1."""
    afd: AfdParameters | None = None

    def accepts_kv_of(self, producer: BackendSpec) -> bool:
        """Whether this backend can decode from KV that `producer` computed."""
        return producer.kv_layout == self.kv_layout or producer.kv_layout in self.kv_accepts


@value
class BackendSnapshot:
    """A worker's last account of itself, as old as its observed_at says."""

    observed_at: Seconds
    running: int = 0
    waiting: int = 0
    waiting_prefill_tokens: int = 0
    kv_used_tokens: int = 0
    busy_prefill_s: Seconds = 0.0
    """Device time spent on prefill since the worker's boot; grows."""
    busy_decode_s: Seconds = 0.0
    energy_j: float = 0.0
    preemptions: int = 0
    steps: int = 0
    """Engine steps since boot. This and the next four say what the busy time was spent on: they are the
    regressors of the step model, summed over steps. All zero when a worker does not count them."""
    decode_sequences: int = 0
    """Sequences that decoded, summed over steps."""
    context_tokens: float = 0.0
    """Their contexts, summed over steps."""
    prefill_tokens: int = 0
    """Prompt tokens computed."""
    attention_pairs: float = 0.0
    """Sum of n (h + n / 2) over prompt chunks of n tokens with h tokens of history."""
    loading: str = ""
    """The model that is being loaded or compiled; nothing runs meanwhile."""
    busy_loading_s: Seconds = 0.0
    """Time spent on loading and compiling since boot; grows."""
    busy_attention_s: Seconds = 0.0
    """Sub-phases of decode where it is split (AFD): busy time of the attention devices, since boot. The three
    overlap, so they do not add up to busy_decode_s."""
    busy_ffn_s: Seconds = 0.0
    """Of the FFN devices."""
    busy_transfer_s: Seconds = 0.0
    """Of the network between them."""


@value
class InFlight:
    """Our own ledger of a backend: booked with the decision, released on every exit. Never stale."""

    prefills: int = 0
    prefill_tokens: int = 0
    """Prompt tokens of the prefills in flight."""
    decodes: int = 0
    """Sequences in decode, or bound to decode here."""
    decode_tokens: int = 0
    """Output tokens those sequences are still expected to need when booked (upper bound: max_new_tokens)."""
    kv_tokens: int = 0
    """KV room booked: prompts in prefill, and prompts plus expected output in decode."""


IDLE = InFlight()


@value
class BackendView:
    """One backend as a policy sees it: the spec, the last snapshot, and our own ledger, kept apart."""

    spec: BackendSpec
    state: BackendState = BackendState.READY
    snapshot: BackendSnapshot | None = None
    in_flight: InFlight = IDLE


@value
class Prediction:
    """What the policy expects, from arrival on. Filled by predicting policies."""

    ttft_s: Seconds
    e2e_s: Seconds
    tpot_s: Seconds | None = None
    cost_usd: float | None = None
    energy_j: float | None = None


@value
class Candidate:
    """A pair that was considered. Higher scores win; the unit is the policy's own."""

    prefill: str
    decode: str
    score: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


@value
class Exclusion:
    """Backends that were not considered, by reason; the first few are named."""

    reason: str
    count: int
    backends: tuple[str, ...] = ()


@value
class Decision:
    """Why a request went where it went. Bounded: the best candidates only."""

    policy: str
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()
    """Best first."""
    exclusions: tuple[Exclusion, ...] = ()
    prediction: Prediction | None = None

    @property
    def runner_up(self) -> Candidate | None:
        """The second best, if more than one was considered."""
        return self.candidates[1] if len(self.candidates) > 1 else None


@value
class RoutePlan:
    """Both phases as a pair. The same backend twice means no split; decode None is bound after prefill."""

    prefill: str
    decode: str | None
    decision: Decision
    expected_output_tokens: int | None = None
    """The policy's estimate, booked in the ledger; None books max_new_tokens."""

    @property
    def is_split(self) -> bool:
        """Whether decode runs elsewhere, or may."""
        return self.decode != self.prefill


@value
class Placement:
    """The answer of late binding: where decode runs."""

    backend: str
    decision: Decision


@value
class Wait:
    """No place at this time; ask again when something changes."""

    reason: str
    decision: Decision | None = None
    no_room: bool = False
    """No backend has room for it. Then requests of the same model and class that need no fewer tokens are
    not asked for until room comes free; otherwise the answer says nothing of others."""
    until: Seconds = math.inf
    """Ask again at this time, later than now, even if nothing has changed."""


@value
class Reject:
    """No place ever, or not in time."""

    reason: str
    infeasible_deadline: bool = False
    decision: Decision | None = None
    retry_after_s: Seconds = 0.0
    """Above 0: it was the load, and a retry after this time may do better; the request is shed."""


@value
class KVHandle:
    """Ownership of one request's KV cache at its producer. Single use, fenced, leased."""

    producer: str
    incarnation: str
    """Boot id of the producer; after a restart the same address is another producer."""
    request_id: str
    epoch: int
    layout: str
    tokens: int
    prefix_hash: int
    expires_at: Seconds
    """On the router's clock."""
    source: str = ""
    """Address the KV is pulled from."""
    connector: bytes = b""


@value
class PhaseCost:
    """What a phase took on its worker."""

    queued_s: Seconds = 0.0
    """From the command to the first step that worked on it."""
    device_s: Seconds = 0.0
    """Share of the device's time; shares of a step add up to the step."""
    energy_j: float = 0.0


@value
class PhaseSample:
    """A phase of one request that ended, for models that learn: what was computed, and what it took."""

    backend: str
    phase: Phase
    cost: PhaseCost
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    """Computed in this phase; 0 in prefill."""
    lasted_s: Seconds = 0.0
    """From its first step to its end, on the router's clock."""
    beside: int = 0
    """Other sequences that decode on the backend at its end, by our own ledger."""


@value
class PhaseUse:
    """One phase as it ran on one backend."""

    phase: Phase
    backend: str
    kind: BackendKind
    cost: PhaseCost
    cost_usd: float


@value
class PhaseTimes:
    """Where the time of a request went. queue + prefill + handoff + decode = e2e (core/timeline.py)."""

    queue_s: Seconds
    prefill_s: Seconds
    handoff_s: Seconds
    decode_s: Seconds
    e2e_s: Seconds
    ttft_s: Seconds | None
    tpot_s: Seconds | None


@value
class Usage:
    """Tokens in and out."""

    prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int


@value
class Report:
    """The account of a request that ended, well or not."""

    request: Request
    times: PhaseTimes
    usage: Usage
    uses: tuple[PhaseUse, ...]
    attempts: int
    decision: Decision | None
    finish: FinishReason | None
    """None when the request failed."""
    error: str = ""
    """Reason of the failure, as in errors.Reason; empty when it ended well."""

    @property
    def cost_usd(self) -> float:
        """Device time at list price, over all phases and attempts."""
        return sum(use.cost_usd for use in self.uses)

    @property
    def energy_j(self) -> float:
        """Energy of the device time, over all phases and attempts."""
        return sum(use.cost.energy_j for use in self.uses)
