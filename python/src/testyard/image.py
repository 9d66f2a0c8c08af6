"""Images: root file systems to start machines from."""

from __future__ import annotations

import os
from typing import Any, Mapping, NamedTuple, Optional, Union

from . import _binary


class Image(NamedTuple):
    """A stored image."""

    #: `sha256:…` of its content.
    digest: str
    #: Its names, such as `debian:12`.
    references: tuple[str, ...]
    #: Where it came from.
    origin: str
    #: Its processor architecture.
    arch: Optional[str]
    #: Bytes of its files.
    size: int
    #: All that the program's JSON says.
    raw: Mapping[str, Any]

    @classmethod
    def _of(cls, raw: Mapping[str, Any]) -> Image:
        return cls(
            digest=raw["digest"],
            references=tuple(raw.get("references", ())),
            origin=str(raw.get("origin", "")),
            arch=raw.get("arch"),
            size=int(raw.get("bytes", 0)),
            raw=raw,
        )

    @staticmethod
    def list() -> list[Image]:
        """All stored images."""
        return [Image._of(one) for one in _binary.call(["image", "list"])["images"]]

    @staticmethod
    def build(release: str) -> Image:
        """Builds a distribution's release, such as `debian:12`, from its archive.

        Raises NotSupported where a tool is missing, InfrastructureError where the archive does not answer."""
        return Image._of(_binary.call(["image", "build", release])["image"])

    @staticmethod
    def import_(reference: str, archive: Union[str, os.PathLike[str]]) -> Image:
        """Stores a root file system, or an image archive, under a name such as `app:1`."""
        return Image._of(_binary.call(["image", "import", reference, os.fspath(archive)])["image"])

    @staticmethod
    def delete(reference: str) -> None:
        """Deletes an image that no machine uses."""
        _binary.call(["image", "delete", reference])
