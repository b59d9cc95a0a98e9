"""Open what lies on this machine: layouts and archives, told apart by what they contain."""

from __future__ import annotations

from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.images.archive import MANIFEST, DockerArchiveSource
from cupola.images.failures import invalid_image
from cupola.images.files import DirectoryFiles, Files, TarFiles
from cupola.images.layout import INDEX, LayoutSource
from cupola.images.reference import Reference
from cupola.images.sources import Source


def open_local(reference: Reference, workspace: Path, max_bytes: int) -> Source:
    """Open the layout or archive of `reference`. Blocks.

    A compressed archive is unpacked into `workspace`, to at most `max_bytes`. New archives of `docker save`
    are both kinds at once; then the reference's transport decides. Raises CupolaError
    `InvalidContainerImage`.
    """
    path = Path(reference.path)
    files: Files = DirectoryFiles(path) if reference.transport == "oci" else TarFiles(path, workspace, max_bytes)
    order = (INDEX, MANIFEST) if reference.transport != "docker-archive" else (MANIFEST, INDEX)
    try:
        for name in order:
            blob = files.find(name)
            if blob is not None:
                blob.file.close()
                return LayoutSource(files, reference) if name == INDEX else DockerArchiveSource(files, reference)
        raise invalid_image(
            f"{path} holds neither {INDEX} nor {MANIFEST}, so it is not a container image. Write one with"
            " `docker buildx build --output type=oci` or `docker save`."
        )
    except CupolaError:
        files.close()
        raise
