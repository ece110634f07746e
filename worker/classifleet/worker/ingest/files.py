"""Images from the worker's own disk, below the folders that the operator opened.

A path is resolved first, symbolic links and `..` and all, and compared with the resolved roots. Then it is opened
once more from the root's descriptor, component by component and following no link, so that whoever swaps a folder
for a link in between gets an error and not a file. What was opened must be a regular file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError, SettingsError

# O_PATH needs no permission to list a folder, only to pass through it; it is Linux's.
_FOLDER_FLAGS: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def require_roots(roots: Sequence[str]) -> None:
    """Check the setting `file_roots`.

    Raises:
        SettingsError: An entry is not an absolute path, or not a folder.
    """
    for root in roots:
        if not Path(root).is_absolute():
            raise SettingsError(f"file_roots: {root!r} is not an absolute path")
        if not Path(root).is_dir():
            raise SettingsError(f"file_roots: {root!r} is not a folder")


def read_file(path: str, roots: Sequence[str], *, max_bytes: int) -> bytes:
    """Read a regular file below one of the roots. Blocks.

    Args:
        path: Absolute.
        roots: Folders; empty means that no file may be read.
        max_bytes: Bytes of the file, at most.

    Raises:
        ImageError: `forbidden_source`, `not_found`, `access_denied`, `too_large`, `invalid_reference` or
            `fetch_failed`.
    """
    if not roots:
        raise _forbidden("file:// references are off: the setting file_roots names no folder")
    try:
        root, parts = _below(os.path.realpath(path), roots)
        data = _read(_open(root, parts), max_bytes + 1)
    except OSError as error:
        raise _image_error(error) from error
    except ValueError:  # characters that no file name can have
        raise ImageError(ErrorCode.INVALID_REFERENCE, "the path is not a file name") from None
    if len(data) > max_bytes:
        raise ImageError(ErrorCode.TOO_LARGE, f"the file is larger than it may be; at most {max_bytes} are read")
    return data


def _below(path: str, roots: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The resolved root that a resolved path lies below, and the components that lead there from it."""
    for root in map(os.path.realpath, roots):
        if Path(path).is_relative_to(root):
            return root, Path(path).relative_to(root).parts
    raise _forbidden("the file is not below a folder that the setting file_roots names")


def _open(root: str, parts: tuple[str, ...]) -> int:
    if not parts:
        raise _not_regular()
    folder = os.open(root, _FOLDER_FLAGS)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Before opening too: to open a device, or the end of a FIFO, can already do something.
        _require_regular(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False))
        return os.open(parts[-1], _FILE_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)


def _read(descriptor: int, most_bytes: int) -> bytes:
    try:
        status = os.fstat(descriptor)
        _require_regular(status)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(min(status.st_size + 1, most_bytes))  # room for the most would be made, and thrown away
            return data if len(data) <= status.st_size else data + file.read(most_bytes - len(data))
    finally:
        os.close(descriptor)


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular()


def _not_regular() -> ImageError:
    return _forbidden("the path is not a regular file")


def _forbidden(message: str) -> ImageError:
    return ImageError(ErrorCode.FORBIDDEN_SOURCE, message)


def _image_error(error: OSError) -> ImageError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError(ErrorCode.NOT_FOUND, "there is no such file")
    if isinstance(error, PermissionError):
        return ImageError(ErrorCode.ACCESS_DENIED, "the worker may not read the file")
    if error.errno == errno.ELOOP:
        return _forbidden("the path leads through a symbolic link that changed, or that leads to itself")
    if error.errno == errno.ENAMETOOLONG:
        return ImageError(ErrorCode.INVALID_REFERENCE, "the path is too long")
    return ImageError(ErrorCode.FETCH_FAILED, f"the file could not be read: {error.strerror or error}")
