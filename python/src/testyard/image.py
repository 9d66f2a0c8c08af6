"""Images: root file systems to start machines from."""

from __future__ import annotations

import os
from typing import Any, Mapping, NamedTuple, Optional, Union

from . import _binary
from . import _given as given
from .errors import InvalidInput


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
        return Image._of(_binary.call(["image", "build", _named(release)])["image"])

    @staticmethod
    def import_(reference: str, archive: Union[str, os.PathLike[str]]) -> Image:
        """Stores a root file system, or an image archive, under a name such as `app:1`."""
        return Image._of(_binary.call(["image", "import", _named(reference), _archive(archive)])["image"])

    @staticmethod
    def pull(
        reference: str,
        *,
        name: Optional[str] = None,
        user: Optional[str] = None,
        password: Optional[str] = None,
        scheme: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> Image:
        """Fetches an image from a server: `SERVER/PATH[:TAG]`, or `SERVER/PATH@sha256:…` for exactly that one.

        It is called as on the server, or `name`. Layers that are stored are not fetched, and what an interrupted pull
        fetched is not fetched again. Without `user` a server that asks is told what `docker login` wrote down; with it,
        `password` or `$TESTYARD_REGISTRY_PASSWORD`. `scheme` is `http` or `https`: without it servers of this host are
        spoken to in the clear, others are not. `timeout` is in seconds, an hour where nothing is said. Raises NotFound,
        PermissionRefused, InvalidInput, and InfrastructureError where the server does not answer."""
        words = ["image", "pull", _named(reference)]
        for option, value in (("--name", name), ("--user", user), ("--scheme", scheme)):
            if value is not None:
                words += [option, given.text(value, f"value of {option[2:]}=", empty=False)]
        if password is not None and user is None:
            raise InvalidInput("a password without a user means nobody", hints=["say user=, too"])
        if timeout is not None:
            words += ["--timeout", f"{given.milliseconds(timeout, 'a timeout')}ms"]
        variables = None
        if password is not None:
            variables = {"TESTYARD_REGISTRY_PASSWORD": given.text(password, "password")}
        return Image._of(_binary.call(words, variables=variables)["image"])

    @staticmethod
    def export(reference: str, archive: Union[str, os.PathLike[str]]) -> int:
        """Writes an image to an archive that `docker load`, skopeo and `Image.import_` read; its size in bytes."""
        return int(_binary.call(["image", "export", _named(reference), _archive(archive)])["exported"]["bytes"])

    @staticmethod
    def delete(reference: str) -> None:
        """Deletes an image that no machine uses."""
        _binary.call(["image", "delete", _named(reference)])


def _named(reference: str) -> str:
    """An image's name as it was given, which the command line does not take for an option."""
    name = given.text(reference, "name of an image", empty=False)
    if name.startswith("-"):
        raise given.refused(name, "name of an image", "give one such as debian:12")
    return name


def _archive(path: Union[str, os.PathLike[str]]) -> str:
    name = given.path(path, "path of an archive")
    return os.path.join(".", name) if name.startswith("-") else name
