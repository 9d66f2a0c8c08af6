"""Which image a VM really starts from: the one asked for, one that stands in for it, or a clear error.

A suite says `ubuntu:22.04`; the host it runs on may reach no archive of Ubuntu's. Where an image is neither stored nor
to be had, the project's own setting names one to use instead, and a warning names it.
"""

from __future__ import annotations

import os
import warnings

from testyard import _given as given
from testyard.errors import InfrastructureError, NotFound, NotSupported, TestyardError

#: The environment variable that names the stand-in, and the key of pytest's ini file that comes before it.
VARIABLE = "TESTYARD_IMAGE"
SETTING = "testyard_image"

_project_image: str | None = None


class ImageStandInWarning(UserWarning):
    """Another image than the one asked for is used."""


def set_project_image(image: str | None) -> None:
    """The image that stands in for those that are not there, of the whole project; None unsets it.

    The pytest plugin calls it with `testyard_image` of the ini file. It comes before the variable `TESTYARD_IMAGE`.
    """
    global _project_image
    _project_image = given.text(image, "name of an image") if image else None


def stand_in() -> tuple[str, str] | None:
    """The image that stands in, and where that is said; None where nothing is said."""
    if _project_image:
        return _project_image, SETTING
    named = os.environ.get(VARIABLE, "").strip()
    return (named, VARIABLE) if named else None


def available_image(image: str) -> str:
    """The image to use for `image`, which is there when this returns.

    It is `image` where that is stored; else the stand-in, with an `ImageStandInWarning`; else `image`, built from its
    distribution's archive, which takes minutes. Raises `NotSupported` with the cause where neither can be had.
    """
    if is_stored(image):
        return image
    other = stand_in()
    if other is None or other[0] == image:
        _build(image, other)
        return image
    name, where = other
    message = f"image {image} is not there: {name} stands in for it, as {where} says"
    warnings.warn(message, ImageStandInWarning, stacklevel=2)
    if not is_stored(name):
        _build(name, other)
    return name


def is_stored(image: str) -> bool:
    """Whether a machine can start from it at once."""
    given.text(image, "name of an image", empty=False)
    if image == "host" or image.startswith("sha256:"):
        return True
    from testyard import Image

    wanted = image if ":" in image else f"{image}:latest"
    return any(wanted in stored.references for stored in Image.list())


def _build(image: str, other: tuple[str, str] | None) -> None:
    from testyard import Image

    try:
        Image.build(image)
    except (InfrastructureError, NotFound, NotSupported, ValueError) as error:
        told = error if isinstance(error, TestyardError) else None
        causes = [told.message, *told.causes] if told else [str(error)]
        hints = [f"name an image that stands in for it: {VARIABLE}=debian:12, or {SETTING} in pytest's ini file"]
        if other is not None:
            hints = [f"name another image in {other[1]}: {other[0]} is none that this host has or can build"]
        hints.append("see the images there are: testyard image list")
        message = f"image {image} is neither stored here nor to be built here"
        raise NotSupported(message, causes=causes, hints=hints) from None
