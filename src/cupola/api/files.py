"""The files of a session (wire contract, sections 4.1 and 4.3). They can be reached whether its sandbox runs or not."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cupola.api.http import error_response, json_object, limit_and_order
from cupola.api.session_lookup import SessionLookup
from cupola.domain.errors import CupolaError
from cupola.sessions.file_listing import DirectoryNames, NamePage
from cupola.sessions.file_names import parse_name, parse_path, shown_path
from cupola.sessions.file_transfer import UPLOAD_LIMIT, Download, too_large
from cupola.sessions.file_tree import Names
from cupola.sessions.files import FileEntry, SessionFiles

PIECE = 256 * 1024
"""Bytes of a download that are in memory at a time."""
UPLOAD_PAUSE = 120.0
"""Seconds that an upload may go without a byte."""
REMOVAL_SLICE = 0.25
"""Seconds that a removal works in a thread before others get their turn."""
REMOVAL_LIMIT = 60.0
"""Seconds after which a removal is given up: the agent may be filling the directory all the time."""

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.IGNORECASE)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class FilesApi:
    """Upload, download, list, remove. `directory` holds the sessions' directories, as for the session manager."""

    def __init__(self, lookup: SessionLookup, directory: Path) -> None:
        self._lookup = lookup
        self._directory = directory
        self._names = DirectoryNames()

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        files = "/agents/{name}/endpoint/sessions/{session}/files"
        return [
            Route(f"{files}/content", self.upload, methods=["PUT"]),
            Route(f"{files}/content", self.download, methods=["GET"]),
            Route(f"{files}/mkdir", self.make_directory, methods=["POST"]),
            Route(f"{files}/stat", self.stat, methods=["GET"]),
            Route(files, self.list_directory, methods=["GET"]),
            Route(files, self.remove, methods=["DELETE"]),
        ]

    async def upload(self, request: Request) -> Response:
        """PUT …/files/content: the body becomes a file, in place of what was there."""
        files = await self._files(request)
        path = _path(request.query_params.get("path"))
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > UPLOAD_LIMIT:
            raise too_large()
        upload, body = files.upload(path), request.stream()
        try:
            await _in_thread(upload.open)
            while part := await _next_part(body):
                await _in_thread(upload.write, part)
            await _in_thread(upload.finish)
        finally:
            await _in_thread(upload.close)
        return _json({"path": shown_path(path), "bytes_written": upload.size}, 201)

    async def download(self, request: Request) -> Response:
        """GET …/files/content: a file, or one range of it."""
        files = await self._files(request)
        download = files.download(_path(request.query_params.get("path")))
        try:
            await _in_thread(download.open)
            wanted = _wanted(request, download.size)
            if wanted is None or wanted:
                return _DownloadResponse(download, wanted, request.method == "HEAD")
        except BaseException:
            await _in_thread(download.close)
            raise
        await _in_thread(download.close)
        text = f"The range is outside of the file, which has {download.size} bytes."
        refusal = error_response(request.scope, CupolaError("range_not_satisfiable", text, status=416))
        refusal.headers["content-range"] = f"bytes */{download.size}"
        return refusal

    async def list_directory(self, request: Request) -> Response:
        """GET …/files: the immediate children of a directory, by name."""
        query = request.query_params
        limit, order = limit_and_order(query, "asc")
        after, before = (parse_name(query[name]) if query.get(name) else None for name in ("after", "before"))
        path = parse_path(query.get("path", ""))
        files = await self._files(request)
        entries, last = await asyncio.to_thread(
            files.list_directory, path, NamePage(limit, order == "desc", after, before)
        )
        return _json(
            {
                "object": "list",
                "path": shown_path(path),
                "entries": [_entry_object(entry, path) for entry in entries],
                "first_id": entries[0].name if entries else None,
                "last_id": last,
                "has_more": last is not None,
            }
        )

    async def stat(self, request: Request) -> Response:
        """GET …/files/stat."""
        files = await self._files(request)
        path = _path(request.query_params.get("path"))
        return _json(_entry_object(await asyncio.to_thread(files.stat, path), path[:-1]))

    async def make_directory(self, request: Request) -> Response:
        """POST …/files/mkdir: the path is in the query or in a JSON body."""
        files = await self._files(request)
        given = request.query_params.get("path")
        path = _path((await json_object(request)).get("path") if given is None else given)
        made = await asyncio.to_thread(files.make_directory, path)
        entry = await asyncio.to_thread(files.stat, path)
        return _json(_entry_object(entry, path[:-1]), 201 if made else 200)

    async def remove(self, request: Request) -> Response:
        """DELETE …/files."""
        recursive = request.query_params.get("recursive", "false").lower()
        if recursive not in ("true", "false"):
            raise CupolaError("bad_request", "recursive: expected true or false.", param="recursive")
        path = _path(request.query_params.get("path"))
        files = await self._files(request)
        until = time.monotonic() + REMOVAL_LIMIT
        removed = await asyncio.to_thread(files.remove, path, recursive == "true", REMOVAL_SLICE)
        while not removed:
            if time.monotonic() > until:
                text = (
                    f"path: {shown_path(path)!r} is not empty yet: it holds very much, or is being filled. Try again."
                )
                raise CupolaError("conflict", text, status=409, param="path")
            removed = await _is_removed(files, path, recursive == "true")
        return Response(status_code=204)

    async def _files(self, request: Request) -> SessionFiles:
        session = await self._lookup.find(request)
        files = SessionFiles(self._directory / session.guid / "home", self._names)
        await asyncio.to_thread(files.create)
        return files


class _DownloadResponse(StreamingResponse):
    """Sends an open file, or the wanted part of it, and closes it."""

    def __init__(self, download: Download, wanted: range | None, head: bool) -> None:
        part = range(download.size) if wanted is None else wanted
        headers = {"accept-ranges": "bytes", "content-length": str(len(part)), "cache-control": "no-store"}
        if wanted is not None:
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{download.size}"
        body = _pieces(download, range(0) if head else part)
        super().__init__(body, 200 if wanted is None else 206, headers, "application/octet-stream")
        self._download = download

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _in_thread(self._download.close)


def _wanted(request: Request, size: int) -> range | None:
    # No answer has a validator that If-Range could name, so whoever sends one has another file in mind.
    if request.method == "HEAD" or "if-range" in request.headers:
        return None
    return requested_range(request.headers.get("range", ""), size)


async def _pieces(download: Download, wanted: range) -> AsyncGenerator[bytes]:
    while wanted:
        piece = await _in_thread(download.read, wanted.start, min(len(wanted), PIECE))
        if not piece:
            # The length is announced already: all that is left is to break the connection off.
            raise CupolaError("conflict", "The file became shorter while it was being read.", status=409)
        yield piece
        wanted = wanted[len(piece) :]


def requested_range(header: str, size: int) -> range | None:
    """The bytes of a file that a Range header asks for, none of them when it has no such; None when the whole file is the
    answer, as it is to what is malformed or asks for several ranges."""
    found = _RANGE.fullmatch(header.strip())
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size) if last else None
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


async def _in_thread(
    function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call what blocks. A caller that is cancelled still waits for it, because the file it works on is closed next."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


async def _next_part(body: AsyncGenerator[bytes]) -> bytes:
    """The next part of a request's body; empty at its end."""
    try:
        async with asyncio.timeout(UPLOAD_PAUSE):
            return await anext(body, b"")
    except TimeoutError:
        text = f"No part of the file came for {UPLOAD_PAUSE:g} s; send it again."
        raise CupolaError("request_timeout", text, status=408) from None


async def _is_removed(files: SessionFiles, path: Names, recursive: bool) -> bool:
    """Go on with a removal that has begun; what has vanished by itself counts as removed."""
    try:
        return await asyncio.to_thread(files.remove, path, recursive, REMOVAL_SLICE)
    except CupolaError as error:
        if error.status != 404:
            raise
        return True


def _path(given: object) -> Names:
    if not isinstance(given, str) or not given:
        raise CupolaError(
            "bad_request", "path: expected a path relative to the session's home directory.", param="path"
        )
    return parse_path(given)


def _entry_object(entry: FileEntry, parent: Names) -> dict[str, Any]:
    """What the SDK reads of an entry, and what azd reads: `path`, `is_dir` and `mode`."""
    above = shown_path(parent) if parent else ""
    return {**asdict(entry), "is_dir": entry.is_directory, "path": f"{above}/{entry.name}" if above else entry.name}


def _json(body: dict[str, Any], status: int = 200) -> Response:
    # In ASCII: an agent chooses its files' names, and some characters would steer the terminal of whoever reads the answer.
    return Response(json.dumps(body), status, media_type="application/json")
