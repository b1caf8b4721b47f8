"""What a reward is installed as: its distribution, and the files of its package. Nothing is imported for it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from draft.digests import while_untouched
from draft.rewards.discovery import DISTRIBUTION, Entry
from draft.rewards.loading import offered_by
from draft.rewards.reward import Reward
from draft.rewards.terms import reward_source


@dataclass(frozen=True)
class Package:
    """What a reward is installed as.

    Args:
        name: Its distribution, as names of distributions compare; empty: it was not installed as a plugin.
        version: The distribution's version; empty where it does not count: Draft's own rewards count by their files.
        files: The code and data that are its own, by their names relative to where the package is.
    """

    name: str
    version: str
    files: dict[str, Path]


def package_of(reward: type[Reward]) -> Package:
    """Find what a reward is installed as.

    Of a package these are all files in its folder; of an installed distribution also what else it brought; of a single
    module in a folder of code, what it imports from there and the files there that its source names. Draft's own
    rewards count by their modules alone with what those import and name, so that a change of one leaves the others.

    Args:
        reward: The reward's class.

    Returns:
        The package.
    """
    entry = offered_by(reward)
    modules = dict.fromkeys([reward_source(reward), *_module(entry)])
    if entry is not None and entry.canonical == DISTRIBUTION:
        return Package(DISTRIBUTION, "", _merged(map(_module_files, modules)))
    brought = _brought(entry.dist) if entry is not None else {}
    files = _merged(map(package_files, modules))
    if set(modules) & {path.resolve() for path in brought.values()}:
        files |= brought
    name, version = (entry.canonical, entry.version) if entry is not None else ("", "")
    return Package(name, version, dict(sorted(files.items())))


def package_files(module: Path) -> dict[str, Path]:
    """The files of the package that a module belongs to, wherever it is installed.

    Args:
        module: The module's file.

    Returns:
        Name relative to where the package is, with forward slashes, to file.
    """
    top = None
    for folder in module.parents:
        if not (folder / "__init__.py").is_file():
            break
        top = folder
    if top is not None:
        return _all(top, top.parent)
    shared = any(module.parent.glob("*.dist-info"))  # next to other distributions
    files = _named(reached(module), module.parent)
    waiting, folder = ([] if shared else [module]), module.parent
    while waiting:  # a folder of code that is nobody else's
        for name in _imported(waiting.pop()):
            beside = folder / f"{name}.py"
            if beside.is_file() and beside.name not in files:
                files |= _named([beside], folder)
                waiting.append(beside)
            elif (folder / name / "__init__.py").is_file():
                files |= _all(folder / name, folder)
    return dict(sorted(files.items()))


def reached(module: Path) -> list[Path]:
    """A module and those of its own package that it imports, directly or not, read from the import statements.

    Args:
        module: The module's file.

    Returns:
        Files in one folder, sorted.
    """
    modules, waiting = {module}, [module]
    while waiting:
        for file in _neighbours(waiting.pop()):
            if file not in modules:
                modules.add(file)
                waiting.append(file)
    return sorted(modules)


def _module(entry: Entry | None) -> Iterator[Path]:
    """The file of the module that an entry point names; it has been imported, or there would be no reward."""
    try:
        spec = find_spec(entry.module) if entry is not None else None
    except (ImportError, ValueError):
        return
    if spec is not None and spec.origin and os.path.isfile(spec.origin):
        yield Path(spec.origin).resolve()


def _merged(parts: Iterable[dict[str, Path]]) -> dict[str, Path]:
    return {name: path for files in parts for name, path in files.items()}


def _module_files(module: Path) -> dict[str, Path]:
    return _named(reached(module), module.parent)


def _brought(dist: str) -> dict[str, Path]:
    """What the installer recorded that a distribution put next to other packages; of an editable one nothing."""
    try:
        files = metadata.files(dist) or []
    except metadata.PackageNotFoundError:
        return {}
    brought = {}
    for file in files:
        ours = not file.parts[0].endswith((".dist-info", ".egg-info")) and "__pycache__" not in file.parts
        if ours and not any(part.startswith(".") for part in file.parts) and file.suffix != ".pth":
            path = Path(str(file.locate()))
            if path.is_file() and not file.name.startswith(("__editable__", "_editable_")):
                brought[file.as_posix()] = path
    return brought


def _all(top: Path, base: Path) -> dict[str, Path]:
    """All files in a folder but what is hidden, made from the source, or an environment; links are followed once."""
    files, seen = {}, set()
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or "pyvenv.cfg" in names:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                files[path.relative_to(base).as_posix()] = path
    return files


def _named(modules: list[Path], folder: Path) -> dict[str, Path]:
    """Modules, and the files and folders without code beside them that their source names: `"weights.pt"`, `"*.pt"`."""
    files = {module.name: module for module in modules}
    texts = {text for module in modules for text in _read(module).texts}
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.suffix == ".py" or not _is_named(entry.name, texts):
            continue
        if entry.is_file():
            files[entry.name] = entry
        elif entry.is_dir() and next(entry.rglob("*.py"), None) is None:
            files |= _all(entry, folder)
    return dict(sorted(files.items()))


def _is_named(name: str, texts: set[str]) -> bool:
    """Whether some text is a name, the beginning of a path, an ending such as `.pt`, or a pattern with an ending."""
    if name in texts or ((suffix := os.path.splitext(name)[1]) and suffix in texts):
        return True
    return any(
        text.startswith(f"{name}/") or ("*" in text and "." in text and fnmatchcase(name, text)) for text in texts
    )


@dataclass(frozen=True)
class _Source:
    """What is read in a module.

    Args:
        texts: Its short strings.
        imports: The names of its `import` statements.
        froms: The level, the module and the names of its `from` statements.
    """

    texts: frozenset[str] = frozenset()
    imports: tuple[str, ...] = ()
    froms: tuple[tuple[int, str, tuple[str, ...]], ...] = ()


@while_untouched
def _read(module: Path) -> _Source:
    try:
        nodes = list(ast.walk(ast.parse(module.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python source; its bytes count all the same
        return _Source()
    constants = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return _Source(
        frozenset(text.removeprefix("./") for text in constants if len(text) < 256),
        tuple(alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names),
        tuple((node.level, node.module or "", tuple(alias.name for alias in node.names)) for node in froms),
    )


def _imported(module: Path) -> Iterator[str]:
    """The first names of what a module imports."""
    source = _read(module)
    yield from (name.partition(".")[0] for name in source.imports)
    yield from (name.partition(".")[0] for level, name, _ in source.froms if level == 0 and name)


def _neighbours(module: Path) -> Iterator[Path]:
    """The modules of its own package that a module imports."""
    folder, source = module.parent, _read(module)
    names = list(source.imports)
    for level, base, aliases in source.froms:
        if level <= 1:
            prefix = f"{folder.name}.{base}".rstrip(".") if level == 1 else base
            names += [prefix, *(f"{prefix}.{alias}" for alias in aliases)]
    for name in names:
        package, _, rest = name.partition(".")
        if package == folder.name and rest and (file := folder / f"{rest.split('.')[0]}.py").is_file():
            yield file
