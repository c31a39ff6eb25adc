"""Numbers with bounds: annotations of hyper-parameters, by which a config is checked before anything runs.

They say something to a config only; calling a class oneself is not checked.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Above0 = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Below1 = Annotated[float, Field(gt=0, lt=1)]
UpTo1 = Annotated[float, Field(ge=0, le=1)]
