"""What a registry's failure means for the person who named the image."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from cupola.images.failures import invalid_image, pull_failed


def check_status(response: httpx2.Response, registry: str, image: str) -> None:
    """Refuse every answer that does not carry content.

    Raises CupolaError, or httpx2.HTTPStatusError for failures that may pass when asked again.
    """
    status = response.status_code
    if status in (200, 206):
        return
    if status == 404:
        raise invalid_image(
            f"The registry {registry} does not have {image}. Check the name and the tag or digest, and that"
            " the image was pushed there."
        )
    if status in (401, 403):
        raise pull_failed(
            f"The registry {registry} refused access to {image} (HTTP {status}). If the name is right and"
            f" the image is private, run `docker login {registry}` on this machine as the user that runs"
            " Cupola, with an account that may pull it."
        )
    if status == 429 or status >= 500:
        raise httpx2.HTTPStatusError(f"HTTP {status}", request=response.request, response=response)
    raise pull_failed(f"The registry {registry} answered HTTP {status} for {image}. Check that it is a registry.")


@contextmanager
def explained(registry: str) -> Iterator[None]:
    """Turn every httpx2 error into CupolaError `ImagePullBackOff`."""
    try:
        yield
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        reason = "limits how often this machine may pull" if status == 429 else "has an internal failure"
        raise pull_failed(f"The registry {registry} {reason} (HTTP {status}). Try again later.") from error
    except (httpx2.TimeoutException, TimeoutError) as error:
        raise pull_failed(
            f"The registry {registry} did not answer in time ({type(error).__name__}). Check that this"
            " machine can reach it, then try again."
        ) from error
    except httpx2.ConnectError as error:
        if _is_tls(error):
            raise pull_failed(
                f"No trustworthy TLS connection to the registry {registry}: {error}. Install its certificate"
                " authority on this machine, or, for plain HTTP on a network you trust, name it among the"
                " insecure registries."
            ) from error
        raise pull_failed(
            f"The registry {registry} cannot be reached: {error}. Check the host name, and that this machine"
            " can connect to it."
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        detail = str(error) or type(error).__name__
        raise pull_failed(f"The connection to the registry {registry} broke: {detail}. Try again.") from error


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
