"""Nothing in this project runs what it reads: no pickle from outside, no evaluated text, no shell, no code of a model's or a dataset's."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("nanochat", "scripts") for path in (ROOT / room).rglob("*.py"))

ALLOWED = {
    "nanochat/sandbox/inside.py": {"exec"},  # in the cage, where it is all there is
    "nanochat/train/safe_metadata.py": {"pickle.Unpickler"},  # whose find_class knows a list of tensors and nothing else
    "nanochat/model/from_nanochat.py": {"pickle.Unpickler"},  # whose find_class knows a tokenizer and nothing else
    "nanochat/train/checkpoint_files.py": {"torch.distributed.checkpoint.FileSystemReader"},  # whose read_metadata is replaced
    "nanochat/preflight/clock.py": {"ssl._create_unverified_context"},  # a wrong clock makes certificates invalid; the time alone is asked
    "nanochat/preflight/versions.py": {"runpy.run_path"},  # of the installed torch's own version.py
}
"""What stands in a file in spite of the rules below, and why."""

MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "tarfile", "torch.hub", "torch.package", "torch.jit", "xmlrpc"}
"""Modules that make objects or files of bytes from anywhere; none is needed."""
NAMES = {
    *("eval", "exec", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "pickle._load", "pickle._loads", "pandas.read_pickle"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"),
    *("numpy.lib.npyio.NpzFile", "numpy.core.multiarray.fromstring", "shutil.unpack_archive", "tempfile.mktemp"),
    *("torch.distributed.checkpoint.FileSystemReader", "torch.serialization.add_safe_globals"),
    *("ssl._create_unverified_context", "ssl.CERT_NONE", "importlib.import_module", "runpy.run_path", "runpy.run_module"),
}
"""Names that are not used outside what is allowed above."""
METHODS = {"extractall", "add_safe_globals"}
"""The same of methods, of whatever object."""
SWITCHES = {"trust_remote_code": False, "allow_pickle": False, "shell": False, "weights_only": True, "verify": True}
"""Arguments that may be given with this value only."""
NEEDED = {"torch.load": "weights_only"}
"""Calls that must say it."""


def found_in(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of what the rules forbid in a file."""
    tree = ast.parse(source)
    known: dict[str, str] = {"np": "numpy", "torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
                yield from ((node.lineno, alias.name) for module in MODULES if f"{alias.name}.".startswith(f"{module}."))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = whole
                yield from ((node.lineno, whole) for module in MODULES if f"{whole}.".startswith(f"{module}."))

    def name_of(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{name_of(node.value)}.{node.attr}"
        return known.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = name_of(node)
            if name in NAMES or (name.split(".")[-1] in METHODS and "." in name):
                yield node.lineno, name
            yield from ((node.lineno, name) for module in MODULES if name == module and "." in module)
        elif isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            for key, value in given.items():
                if key in SWITCHES and not (isinstance(value, ast.Constant) and value.value is SWITCHES[key]):
                    yield node.lineno, f"{key}={ast.unparse(value)}"
            if (called := name_of(node.func)) in NEEDED and NEEDED[called] not in given:
                yield node.lineno, called


def test_nothing_that_is_read_is_run() -> None:
    assert len(FILES) > 200
    for path in FILES:
        where = str(path.relative_to(ROOT))
        found = [(line, name) for line, name in found_in(path.read_text(encoding="utf-8")) if name not in ALLOWED.get(where, ())]
        assert found == [], where


@pytest.mark.parametrize("where", ALLOWED)
def test_what_is_allowed_is_there(where: str) -> None:
    assert {name for _, name in found_in((ROOT / where).read_text(encoding="utf-8"))} == ALLOWED[where]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle; pickle.load(f)",
        "import pickle as p; p.loads(b)",
        "from pickle import load; load(f)",
        "from pickle import Unpickler as U\nclass X(U): pass",
        "import dill",
        "from joblib import load",
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import torch; torch.load(f, weights_only=flag)",
        "import torch as t; t.load(f)",
        "import torch; torch.hub.load('x', 'y')",
        "from torch.hub import load",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import yaml; yaml.load(f, yaml.Loader)",
        "eval('1')",
        "exec(text)",
        "run = exec",
        "__import__('x')",
        "import importlib; importlib.import_module(name)",
        "import os; os.system('x')",
        "import subprocess; subprocess.run('x', shell=True)",
        "f(x, trust_remote_code=True)",
        "import zipfile; zipfile.ZipFile(f).extractall()",
        "import tarfile",
        "import shutil; shutil.unpack_archive(f)",
        "from torch.distributed.checkpoint import FileSystemReader; FileSystemReader(p).read_metadata()",
        "import torch.distributed.checkpoint as dcp; dcp.FileSystemReader(p)",
        "import torch; torch.serialization.add_safe_globals([X])",
        "import requests; requests.get(u, verify=False)",
    ],
)
def test_the_rules_find_what_they_forbid(source: str) -> None:
    assert list(found_in(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load(f, weights_only=True)",
        "import numpy as np; np.load(f)",
        "import yaml; yaml.safe_load(f)",
        "import re; re.compile('x')",
        "model.eval()",
        "import subprocess; subprocess.run(['x'])",
        "import torch; torch.compile(f)",
    ],
)
def test_the_rules_leave_alone_what_is_harmless(source: str) -> None:
    assert list(found_in(source)) == []
