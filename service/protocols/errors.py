"""Routes that tell what goes wrong in the words of somebody else's protocol."""

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from service.problems import INVALID_REQUEST, ProblemError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class TranslatedRoute(APIRoute):
    """A route whose problems are told as a protocol's own servers do; what is invalid is a 400 to them."""

    def get_route_handler(self) -> Handler:
        """Return FastAPI's handler, its problems translated."""
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            try:
                return await handle(request)
            except ProblemError as problem:
                status = 400 if problem.kind is INVALID_REQUEST else problem.kind.status
                return self.tell(status, problem.detail, dict(problem.headers))
            except RequestValidationError as error:
                first = error.errors()[0]
                return self.tell(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", {})

        return translated

    @staticmethod
    @abstractmethod
    def tell(status: int, detail: str, headers: dict[str, str]) -> Response:
        """Return an error as the protocol has it."""
