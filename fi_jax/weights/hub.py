"""Names on the Hugging Face Hub -> folders on this machine."""

import os
from pathlib import Path

from fi_jax.errors import UserError


def resolve_folder(name_or_folder: str | Path) -> Path:
    """Returns the folder of a checkpoint, fetched from the Hub unless it is one already.

    A Hub name may carry a revision, `name@revision`: a branch, a tag, or best the hash of a commit.

    Raises:
      UserError: no such folder, no such repository, or no network and not in the local cache.
    """
    folder = Path(os.path.expanduser(name_or_folder))  # noqa: PTH111 (Path's raises where no home is known)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    repository, _, revision = name.partition("@")
    if folder.is_file():
        raise UserError(f"{name} is a file; name the checkpoint's folder")
    if folder.is_absolute() or name.startswith(".") or repository.count("/") > 1:
        raise UserError(f"no checkpoint folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except RevisionNotFoundError:
        raise UserError(f"'{repository}' has no revision '{revision}' on the Hugging Face Hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"'{name}' is neither a folder nor a repository on the Hugging Face Hub that you may read"
        ) from None
    # Offline shows as many types: the library's own, its HTTP client's, the operating system's.
    except Exception as error:
        # Its first sentence.
        reason = str(error).strip().splitlines()[0].split(". ")[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"'{name}' is not a folder and cannot be fetched from the Hugging Face Hub ({reason}); fetch it where there "
            f"is a network (`hf download {repository}{f' --revision {revision}' if revision else ''}`) and give the folder"
        ) from None
