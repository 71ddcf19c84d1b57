"""GET /whoami: which API key the caller uses, and what its roles allow."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.api.edge.access import Access
from service.api.edge.keys import ROLES


class WhoAmI(BaseModel):
    """The caller's API key and what it may do."""

    name: str = Field(description="The key's name; 'anonymous' where the service asks for no key")
    roles: list[str] = Field(description="What the key may do, implied roles included")
    missing: list[str] = Field(description="The roles that the key lacks")
    keys_required: bool = Field(description="Whether the service asks for keys at all")


def router(access: Access) -> APIRouter:
    """Make the route GET /whoami."""
    routes = APIRouter(tags=["access"])

    @routes.get("/whoami", responses=_PROBLEMS)
    async def whoami(request: Request) -> WhoAmI:
        """The name and the roles of the key in use; 401 says why a key is not accepted."""
        key = access.identify(request.scope["headers"])
        roles = ROLES if key is None else access.roles_of(key)
        return WhoAmI(
            name=access.name_of(key),
            roles=sorted(roles),
            missing=sorted(set(ROLES) - set(roles)),
            keys_required=not access.open_to_all,
        )

    return routes


_PROBLEMS: dict[int | str, dict[str, str]] = {
    401: {"description": "No API key was given, or it is not known"}
}
