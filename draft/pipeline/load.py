"""From a pipeline file and overrides to a checked `Pipeline`, or to all its errors at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from draft.errors import ConfigError, ConfigErrors, DraftError, did_you_mean
from draft.files import usable
from draft.isolation.consent import asking
from draft.pipeline.check import Pipeline, check_document
from draft.pipeline.document import Document, Keys, parse_document
from draft.pipeline.fields import rename_aliases
from draft.pipeline.kinds import kind_of
from draft.pipeline.overrides import apply_overrides
from draft.pipeline.rehearsal import use_stand_ins
from draft.pipeline.resolve import withheld


def load_pipeline(
    file: str | Path, overrides: Sequence[str] = (), *, rehearse: bool = False, ask: bool = False
) -> Pipeline:
    """Load a pipeline file, apply overrides, resolve variables, and check everything that needs no torch.

    Args:
        file: A YAML file, or the name of one that ships with Draft.
        overrides: Changes as full dotted keys, e.g. ``["stages.train.max_steps=20"]``; values are YAML.
        rehearse: Load the small version of it that runs on the embedded models: stand-ins replace the file's values,
            the file's `rehearsal:` replaces those, and the overrides replace both.
        ask: Whether to run the environments of isolated rewards, which the user must have allowed, to learn what
            these rewards are; otherwise their options are not checked.

    Returns:
        The pipeline, valid as far as can be seen without loading a model.

    Raises:
        ConfigError: Something is wrong; `ConfigErrors` holds several, in the order of the file.
    """
    path = find_pipeline(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the file is not UTF-8 text: byte {error.start}", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    document, errors = parse_document(text, str(file) if Path(file).is_file() else str(path))
    with asking(ask):
        applied = apply_overrides(document, overrides, errors, rehearse=rehearse)
        renamed = _rename_aliases(document, errors)
        replaced = applied.replaced
        if rehearse:
            explicit = {renamed.get(keys, keys) for keys in applied.explicit}
            full_size = applied.full_size
            _rename_aliases(full_size, [])
            replaced += use_stand_ins(document, explicit, path.resolve().parent, errors, full_size=full_size)
            for change in replaced:
                if change.key != "name":  # which keeps what it had and gets an ending
                    document.forget_environment(tuple(change.key.split(".")))
        pipeline, check_errors = check_document(document, path)
    # What could not be resolved is missing only because of that.
    errors += [error for error in check_errors if error.what not in {f"missing key {key!r}" for key in applied.broken}]
    if errors or pipeline is None:
        errors.sort(key=lambda error: _order(error.where, document.name))
        for error in errors:
            error.what, error.hint = (withheld(text, document.environment) for text in (error.what, error.hint))
        raise errors[0] if len(errors) == 1 else ConfigErrors(errors)
    full_size_environment = {**document.environment, **applied.full_size.environment}
    return replace(pipeline, replacements=tuple(replaced), replaced_environment=full_size_environment)


def find_pipeline(file: str | Path) -> Path:
    """The path of a pipeline file.

    Args:
        file: A path, or the bare name of a shipped pipeline such as ``"quickstart"``.

    Returns:
        An existing file.

    Raises:
        ConfigError: There is neither.
    """
    path = usable(file)
    if path.is_file():
        return path
    shipped = {path.stem: path for folder in _shipped_folders() for path in sorted(folder.glob("*.yaml"))}
    if str(file) in shipped:
        return shipped[str(file)]
    names = list(shipped)
    otherwise = f"shipped pipelines: {', '.join(names)}" if names else "give the path of a YAML file"
    what = "a pipeline is a file, not a folder" if path.is_dir() else "no such pipeline file"
    hint = did_you_mean(path.stem, names, otherwise=otherwise) if path.parent == Path() else otherwise
    raise ConfigError(f"{what} (got {str(file)!r})", hint=hint)


def _rename_aliases(document: Document, errors: list[DraftError]) -> dict[Keys, Keys]:
    """Give keys of stages that are another name of a field the field's own; returns old to new places."""
    stages: Any = document.data.get("stages")
    renamed: dict[Keys, Keys] = {}
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if kind := kind_of(stage):
            renamed |= rename_aliases(kind.settings, stage, ("stages", name), document, errors)
    return renamed


def _shipped_folders() -> list[Path]:
    package = Path(str(files("draft")))
    # A wheel has them inside the package; an editable install has them in the checkout.
    folders = [folder for folder in (package / "pipelines", package.parent / "pipelines") if folder.is_dir()]
    return folders[:1]


def _order(where: str, name: str) -> tuple[int, int]:
    if where.startswith(f"{name}:") and where.removeprefix(f"{name}:").isdigit():
        return (0, int(where.removeprefix(f"{name}:")))
    return (2, 0) if where.startswith("command line") else (1, 0)
