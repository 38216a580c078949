"""What the daemon keeps of its decisions so that they can be explained, and the shadow policy beside them."""

from __future__ import annotations

from collections.abc import Sequence

from router.live.admin_rpc import CallLimits
from router.live.decision_service import DecisionService
from router.live.shadow import Shadow
from router.live.watched_policy import Witness
from router.observe.records import DecisionLog
from router.observe.scene import SceneLog


class Insight:
    """Records, scenes, the service that explains them, and the shadow if there is one. Needs the running
    loop. Close it when the last decision is made."""

    def __init__(self, shadow: Shadow | None, limits: CallLimits) -> None:
        self.records = DecisionLog()
        """A tap of the driver."""
        self.scenes = SceneLog()
        self.shadow = shadow
        self.service = DecisionService(self.records, self.scenes, limits)

    @property
    def witnesses(self) -> Sequence[Witness]:
        """Who sees the policy's decisions."""
        return (self.scenes,) if self.shadow is None else (self.scenes, self.shadow)

    def close(self) -> None:
        """Stop the shadow. Waits for it a moment, so not on the loop's thread."""
        if self.shadow is not None:
            self.shadow.close()
