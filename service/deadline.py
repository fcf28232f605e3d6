"""Deadline: whatever a request waits for, it is answered in the end."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import DEADLINE_EXCEEDED, describe_at, respond


class Deadline:
    """Cancels requests that take longer than they may.

    One timer looks at all of them now and then: a timer for each would cost every request more than this is worth.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self._seconds = seconds
        self._look_seconds = min(1.0, seconds / 4)
        self._began: dict[asyncio.Task[object], float] = {}
        self._cancelled: set[asyncio.Task[object]] = set()
        self._looking = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self.app(scope, receive, send)
            return
        loop = task.get_loop()
        self._began[task] = loop.time()
        if not self._looking:
            self._look_again(loop)
        try:
            await self._answer(task, scope, receive, send)
        finally:
            del self._began[task]
            self._cancelled.discard(task)

    async def _answer(self, task: asyncio.Task[object], scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except asyncio.CancelledError:
            if task not in self._cancelled or started:
                raise  # Half an answer is out, or the process ends.
            task.uncancel()
            detail = f"there was no answer within {self._seconds:g} seconds"
            problem = describe_at(scope, DEADLINE_EXCEEDED, detail)
            await respond(problem, {"retry-after": "1"})(scope, receive, send)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = True
        loop.call_later(self._look_seconds, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        latest = loop.time() - self._seconds
        for task, began in self._began.items():
            if began < latest and task not in self._cancelled:
                self._cancelled.add(task)
                task.cancel()
        self._looking = False
        if self._began:
            self._look_again(loop)
