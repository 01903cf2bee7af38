"""(to be written by the targets part) Profile schema."""
from pydantic import BaseModel


class Profile(BaseModel, extra="forbid", frozen=True):
    name: str
