"""A model of the Hugging Face Hub as a local folder: one snapshot, one commit hash, and every failure as one line.

Tokens are read by huggingface_hub alone (HF_TOKEN or its login) and never shown: the Hub's messages are not repeated.
"""

from importlib import import_module
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from xai_utils.errors import UserError, first_line, nearest
from xai_utils.files import writing
from xai_utils.models.download import BUILT_IN

# The HTTP library is huggingface_hub's choice (httpx before its version 2, httpx2 since), and so is its error.
_LIBRARY = next(kind.__module__ for kind in HfHubHTTPError.__mro__ if kind.__module__.startswith("httpx"))
TransportError: type[Exception] = import_module(_LIBRARY.partition(".")[0]).TransportError

TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
MODEL_FILES = [*TOKENIZER_FILES, "*.safetensors"]


def snapshot(repository: str, revision: str | None = None, files: list[str] = MODEL_FILES) -> tuple[Path, str]:
    """The folder of a Hub model's `files` in huggingface_hub's cache, fetched where needed, and its commit hash.

    Only files at the repository's top count, so that other formats of the same weights stay where they are. Without
    network, or with HF_HUB_OFFLINE=1, what the cache holds is used.

    Raises UserError: no such id or revision, gated without a token, unreachable and not in the cache, a disk that is
    full or cannot be written.
    """
    try:
        with writing(Path(constants.HF_HUB_CACHE), variable="HF_HOME"):
            folder = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=files,
                ignore_patterns=["*/*", "consolidated*"],
                tqdm_class=tqdm,  # its own becomes a widget in a notebook
            )
    except HFValidationError:
        raise UserError(
            f"{repository!r} cannot be a model's name; "
            f"expected a built-in ({', '.join(BUILT_IN)}), a Hub id, a folder or a GGUF file"
        ) from None
    except GatedRepoError:  # a subclass of RepositoryNotFoundError
        raise UserError(
            f"{repository} is gated; accept its terms on {constants.ENDPOINT}/{repository}, "
            "then set HF_TOKEN to a token of the account that did"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{repository} has no revision {revision!r}; "
            f"give a branch, a tag or a commit hash of {constants.ENDPOINT}/{repository}"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{repository} is no folder here and no model on the Hub; {nearest(repository, BUILT_IN)}; "
            "correct the name, or set HF_TOKEN if the model is private"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError):
        way = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "connect to the network"
        revised = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{repository}{revised} is not in the local cache and {constants.ENDPOINT} cannot be asked; "
            f"{way}, or give a local folder or the built-in {', '.join(BUILT_IN)}"
        ) from None
    except HfHubHTTPError as error:  # any other answer of the Hub
        status = error.response.status_code
        way = "set HF_TOKEN to a token that is valid" if status in (401, 403) else "try again later"
        raise UserError(f"the Hub answered {status} for {repository}; {way}, or give a local folder") from None
    except OSError as error:  # such as a file that came in another size than announced
        raise UserError(f"{repository} could not be fetched ({first_line(error)}); try again") from None
    return Path(folder), Path(folder).name
