"""The base of every JSON document of the contract."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A document without unknown members, conversions, NaN or infinity. It cannot be changed."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
