"""The hub: an exported model's folder pushed there, with every refusal as one error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import LabError

_STEPS = {
    401: "log in with 'hf auth login', or set HF_TOKEN to a token that may write",
    403: "your token may not write there: take one with write access, or ask the organization for the right",
    404: "there is no such owner or repository for your token; check the id, and that the token may see it",
}
"""What to do where the hub refuses, by HTTP status."""


def open_repository(repository: str, public: bool) -> None:
    """Make a model repository on the hub unless it is there: what refuses, refuses before anything is exported."""
    from huggingface_hub import HfApi

    with _refusals(repository):
        HfApi().create_repo(repository, private=not public, exist_ok=True)


def push(folder: Path, repository: str, message: str) -> str:
    """Upload a folder to a repository that is there, and return its address; files that the hub has already are not sent again."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _refusals(repository):
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return f"{api.endpoint}/{repository}"


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    network_error: Any = HfHubHTTPError.__bases__[
        0
    ]  # of the HTTP library that the hub's client is built on: another one by version
    try:
        yield
    except HFValidationError as error:
        raise LabError(f"hub: {repository!r} is no id of a repository ({error}); write OWNER/NAME") from None
    except OfflineModeIsEnabled:
        raise LabError("hub: HF_HUB_OFFLINE forbids to push; unset it where there is a network") from None
    except LocalTokenNotFoundError:
        raise LabError(f"hub: there is no token; {_STEPS[401]}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        step = _STEPS.get(status, "try again later; nothing was lost, and what was sent is not sent again")
        reason = error.server_message or f"HTTP {status}"
        raise LabError(f"hub: {constants.ENDPOINT} refuses '{repository}' ({status}: {reason}); {step}") from None
    except (network_error, ConnectionError) as error:
        raise LabError(
            f"hub: {constants.ENDPOINT} cannot be reached ({error}); check network and HF_ENDPOINT, then give the command again"
        ) from None
    except RuntimeError as error:  # what the client makes of a file that did not come through
        raise LabError(
            f"hub: {error} ({error.__cause__}); give the command again, what was sent is not sent again"
        ) from error
