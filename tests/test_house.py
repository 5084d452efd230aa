"""The rules of the house: which part may import which, no forbidden packages, no endless files."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400

# What each folder may import of ours, by the last part of its name, its own files besides: the table of
# docs/architecture.md, floor by floor. There are no exceptions for single files.
FLOORS = {
    "core": "",
    "diffusion": "",
    "images": "core",
    "parallel": "core",
    "text": "core",
    "data": "core images text",
    "nn": "parallel",
    "models": "core nn parallel",
    "stages": "core diffusion images models parallel",
    "adapters": "core diffusion models parallel stages",
    "systems": "adapters core diffusion images models parallel stages text",
    "bundle": "core diffusion images models stages systems text",
    "sampling": "bundle core diffusion images parallel stages systems text",
    "editing": "core diffusion images sampling stages systems",
    "convert": "adapters bundle core diffusion images models stages systems text",
    "eval": "bundle core data editing images sampling systems",
    "training": "adapters bundle core data diffusion editing images models parallel stages systems text",
    "planning": "core diffusion models nn parallel stages systems training",
    "functions": "diffusion editing images sampling stages systems",
}
ALLOWED = {
    **{f"unclip_jax.{name}": tuple(f"unclip_jax.{other}" for other in row.split()) for name, row in FLOORS.items()},
    "unclip_jax": tuple(
        f"unclip_jax.{other}" for other in ("bundle", "core", "functions", "sampling", "stages", "systems")
    ),
    "train": ("unclip_jax",),
    "sample": ("unclip_jax",),
    "benchmarks": ("unclip_jax", "train", "sample"),
}
FORBIDDEN = ("torch", "torchvision", "tensorflow")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


OURS = ("unclip_jax", "train", "sample", "benchmarks")
SOURCES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
MODULES = {module_name(path): path for path in SOURCES}
PACKAGES = {module_name(path) for path in SOURCES if path.name == "__init__.py"}


def imports(module: str, source: str) -> set[str]:
    """Every module that `source` imports, wherever the import stands; names of modules in full."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if module in PACKAGES else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in MODULES else base)
    return found


def rule_for(module: str) -> str | None:
    return max((prefix for prefix in ALLOWED if is_under(module, prefix)), key=len, default=None)


def violations(module: str, source: str) -> list[str]:
    rule = rule_for(module)
    if rule is None or (rule == "unclip_jax" and module != "unclip_jax"):
        return [f"{module} has no rule; say in ALLOWED what it may import"]
    problems = []
    for name in sorted(imports(module, source)):
        if is_under(name, rule) and rule != "unclip_jax":
            continue
        if name.split(".")[0] in OURS and not any(is_under(name, prefix) for prefix in ALLOWED[rule]):
            problems.append(f"{module} imports {name}")
        if name.split(".")[0] in FORBIDDEN:
            problems.append(f"{module} imports {name}")
        if name.split(".")[0] == "jax" and is_under(module, "unclip_jax.data"):
            problems.append(f"{module} imports {name}")
    return problems


def test_no_imports_run_in_circles():
    """A file whose imports lead back to it, or a folder."""

    def folder(module: str) -> str:
        return ".".join(module.split(".")[: 2 if module.startswith("unclip_jax.") else 1])

    files = {module: imports(module, path.read_text()) & set(MODULES) for module, path in MODULES.items()}
    folders: dict[str, set[str]] = {folder(module): set() for module in MODULES}
    for module, found in files.items():
        folders[folder(module)] |= {folder(name) for name in found} - {folder(module)}
    for graph in (files, folders):
        graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module):
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unclip_jax.stages.x", "from unclip_jax.systems.system import System"),
        ("unclip_jax.systems.x", "from unclip_jax.sampling import session"),
        ("unclip_jax.diffusion.x", "from unclip_jax.core.errors import UserError"),
        ("unclip_jax.models.x", "import unclip_jax.diffusion.gaussian"),
        ("unclip_jax.models.x", "def f():\n    from unclip_jax.diffusion import gaussian"),
        ("unclip_jax.models.x", "from ..diffusion.gaussian import Process"),
        ("unclip_jax.models.x", "from .. import diffusion"),
        ("unclip_jax.nn.x", "from unclip_jax.models.clip import CLIP"),
        ("unclip_jax.data.x", "from unclip_jax.training.state import State"),
        ("unclip_jax.data.x", "import jax.numpy as jnp"),
        ("unclip_jax.parallel.x", "from unclip_jax.models.unet import UNet"),
        ("unclip_jax.training.x", "from train.recipes import decoder"),
        ("unclip_jax.eval.x", "from sample.cli import main"),
        ("unclip_jax.convert.x", "def f():\n    import torch"),
        ("unclip_jax.data.x", "import tensorflow as tf"),
        ("sample.x", "from train.decoder import main"),
        ("train.x", "import sample.text_to_image"),
        ("unclip_jax.unheard_of", ""),
    ],
)
def test_the_rules_find_what_they_forbid(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unclip_jax.models.x", "import unclip_jax.nn.norms\nfrom unclip_jax.models import base"),
        ("unclip_jax.images.resize", "import jax"),
        ("unclip_jax.diffusion.samplers.x", "from unclip_jax.diffusion.schedule import Schedule"),
        ("sample.x", "from sample.cli import main\nfrom unclip_jax.systems.system import run"),
    ],
)
def test_the_rules_allow_what_they_should(module, source):
    assert violations(module, source) == []


def test_no_file_grows_past_one_sitting():
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def test_signatures_say_what_they_take_and_return():
    found = []
    for path in (path for path in SOURCES if path.is_relative_to(ROOT / "unclip_jax")):
        functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
        for each in functions:
            arguments = [
                each.args.vararg,
                each.args.kwarg,
                *each.args.posonlyargs,
                *each.args.args,
                *each.args.kwonlyargs,
            ]
            types = [each.returns, *(argument.annotation for argument in arguments if argument is not None)]
            words = [ast.unparse(kind) for kind in types if kind is not None]
            found += [f"{path}:{each.lineno} {each.name}" for word in words if re.search(r"\bAny\b", word)]
    assert len(found) < 20, "\n".join(found)


def test_commands_in_the_documents_exist():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    text = "\n".join(path.read_text() for path in documents)
    commands = re.findall(r"(?:python3?|\$\(PY\)) -m ((?:unclip_jax|train|sample|benchmarks)[\w.]*)", text)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE)
    assert commands
    missing = {name for name in commands if name not in MODULES and f"{name}.__main__" not in MODULES}
    missing |= {f"make {name}" for pair in made for name in pair if name and name not in targets}
    assert missing == set()
