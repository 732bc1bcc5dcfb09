"""sparsebert-inference: the wheel for servers, built, installed by itself, and used."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = ROOT / "sparsebert"


def test_the_two_projects_agree() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    light = tomllib.loads((LIGHT / "pyproject.toml").read_text())
    assert light["project"]["version"] == whole["project"]["version"]
    assert f'__version__ = "{light["project"]["version"]}"' in (LIGHT / "__init__.py").read_text()
    assert set(light["project"]["dependencies"]) <= set(whole["project"]["dependencies"])
    extra = "optional-dependencies"
    assert light["project"][extra]["bench"] == whole["project"][extra]["bench"]
    assert (LIGHT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is written into the source."""
    folder = tmp_path_factory.mktemp("light")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "sparsebert"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    program = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=folder / "sparsebert",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_our_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"sparsebert", "sparsebert_inference-0.1.0.dist-info"}
    for needed in ("py.typed", "inference/kernel/encoder.cpp", "inference/kernel/vectors.h"):
        assert f"sparsebert/{needed}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_server_installs_it_and_runs_the_readme(wheel: Path, tmp_path: Path) -> None:
    """An environment with the wheel before this one's packages, of which ours are out of reach."""
    venv.create(tmp_path / "venv", with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "venv" / "lib" / version / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    paths = [p for p in sys.path if p.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    program = """
import sys
sys.path += PATHS  # not as .pth: an editable install of the whole project must not be found
import torch
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification
import sparsebert
assert sparsebert.__file__.startswith(sys.prefix), sparsebert.__file__
torch.manual_seed(0)
config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
pruned = BertForSequenceClassification(config).eval()
for name, weight in pruned.named_parameters():
    if ".encoder." in name and weight.dim() == 2:
        weight.data[torch.rand_like(weight) < 0.9] = 0.0
pruned.save_pretrained("pruned")
ids = torch.randint(0, 50, (2, 9))
with torch.no_grad():
    wanted = pruned(ids).logits

from sparsebert import load_sparse, save_sparse, to_sparse
model = to_sparse(AutoModelForSequenceClassification.from_pretrained("pruned"))
save_sparse(model, "serving")
with torch.no_grad():
    for found in (model(ids).logits, load_sparse("serving")(ids).logits):
        assert (found - wanted).abs().max() < 1e-5
for name in ("attach", "SparsityConfig", "prune_folder"):
    try:
        getattr(sparsebert, name)
    except ImportError as error:
        assert "install the whole project" in str(error)
    else:
        raise AssertionError(name)
print(sparsebert.__version__)
"""
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", program.replace("PATHS", repr(paths))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "SPARSEBERT_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    # The packages that this environment borrows may print when they are imported.
    assert done.stdout.splitlines()[-1] == "0.1.0"
