"""Constructor arguments as files carry them, checked before anything is built from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import UsageError

Size = Annotated[int, Field(ge=1, le=2**16)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Filter = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=16)]
Multiples = Annotated[tuple[Annotated[float, Field(gt=0, le=256)], ...], Field(min_length=1, max_length=16)]
Blocks = Annotated[int, Field(ge=1, le=256)]


class Arguments(BaseModel):
    """What every network is told: the images' size (res, res) and channels, and how many classes there are, or 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    img_resolution: Size
    img_channels: Size
    label_dim: Annotated[int, Field(ge=0, le=2**20)] = 0


class UNetArguments(Arguments):
    """What U-Nets have in common: widths a level as multiples, blocks a level, resolutions with attention.

    With `label_dropout` a network was trained without its classes too, and so can be guided.
    """

    model_channels: Size
    channel_mult: Multiples
    num_blocks: Blocks
    attn_resolutions: tuple[int, ...]
    label_dropout: float = 0.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, from the full resolution down."""
        return tuple(round(self.model_channels * m) for m in self.channel_mult)

    @model_validator(mode="after")
    def _halves(self) -> "UNetArguments":
        if self.img_resolution % 2 ** (len(self.channel_mult) - 1):
            levels = len(self.channel_mult)
            raise ValueError(f"a resolution of {self.img_resolution} cannot be halved for each of {levels} levels")
        return self


A = TypeVar("A", bound=Arguments)


def checked(model: type[A], arguments: Mapping[str, Any], what: str, path: Path) -> A:
    """The arguments of `what`, or a UsageError that names the first one that is not understood."""
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        value = f" = {first['input']!r:.40}" if name else ""
        raise UsageError(f"{path}: {what} with {name}{value} is not understood: {first['msg']}") from None
