"""What this gateway lets graders use, by its settings: limits for sources, an endpoint for models, room for a few at a time.

Knows no caller and no wire. One in each gateway; the application layer (app/graders.py) takes one of its `slots` for each grading.
"""

from __future__ import annotations

from datetime import timedelta

from service.settings import Settings
from service.slots import Slots
from trainers.graders.endpoint import Endpoint
from trainers.graders.python_grader import PythonLimits
from trainers.graders.tools import Tools

RETRY_AFTER = timedelta(seconds=2)


class Grading:
    """The tools of this gateway's graders."""

    def __init__(self, tools: Tools, places: int) -> None:
        self.tools = tools
        self.slots = Slots(places, "As many graders run as may; ask again.", RETRY_AFTER)

    @classmethod
    def configured(cls, settings: Settings) -> Grading:
        """What the settings allow."""
        limits = PythonLimits(settings.grader_memory_bytes, settings.grader_allow_unisolated)
        return cls(Tools(limits, _endpoint(settings), settings.grader_timeout), settings.grader_concurrency)

    async def close(self) -> None:
        """Give up the endpoint's connections."""
        if self.tools.endpoint is not None:
            await self.tools.endpoint.close()


def _endpoint(settings: Settings) -> Endpoint | None:
    if settings.grader_base_url is None:
        return None
    key = settings.grader_api_key.get_secret_value() if settings.grader_api_key else None
    return Endpoint(settings.grader_base_url, key, settings.grader_models, settings.grader_embedding_model)
