"""What the tests share: a home of their own that proves it left nothing, honest skips, and both kinds of user."""

from __future__ import annotations

from .home import Home, programs_folder, testyard_program
from .needs import (
    LACKS,
    needs_cluster,
    needs_environment,
    needs_ordinary_user,
    needs_plain_root,
    needs_program,
    needs_python,
    needs_root,
    needs_user_namespaces,
    skip,
)
from .user import as_ordinary_user, is_host_root, ordinary_user

__all__ = [
    "LACKS",
    "Home",
    "as_ordinary_user",
    "is_host_root",
    "needs_cluster",
    "needs_environment",
    "needs_ordinary_user",
    "needs_plain_root",
    "needs_program",
    "needs_python",
    "needs_root",
    "needs_user_namespaces",
    "ordinary_user",
    "programs_folder",
    "skip",
    "testyard_program",
]
