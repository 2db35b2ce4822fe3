"""Does the built package hold all that it needs, and does it run where nothing else of the project is?"""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "playbook_plugins"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    assert len(list(folder.glob("playbook_plugins-*.tar.gz"))) == 1
    [built] = folder.glob("playbook_plugins-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.rpartition("/")[2] for name in archive.namelist() if ".dist-info/" in name}
    sources = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert held == sources
    assert {"playbook_plugins/py.typed", "playbook_plugins/report/template.html"} <= held
    assert {"LICENSE", "entry_points.txt", "METADATA"} <= metadata


@pytest.mark.slow
def test_a_clean_install_runs(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True, text=True, cwd=tmp_path)
    code = (
        "import playbook_plugins, playbook_plugins.wandb\n"
        "from playbook_plugins.analysis import Parameter, Trials, review\n"
        "from playbook_plugins.charts import axis_plot\n"
        "rate = Parameter(name='rate', kind='float', low=0, high=1)\n"
        "tenths = [place / 10 for place in range(10)]\n"
        "trials = Trials.from_columns('clean', [rate], {'rate': tenths}, tenths)\n"
        "print(len(review(trials)) > 0, axis_plot(trials, 'rate').save('axis.json').name)\n"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "True axis.json\n"
    command = subprocess.run(
        [tmp_path / "clean" / "bin" / "playbook", "--help"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert command.returncode == 2
    assert "Run: pip install 'playbook-plugins[report,optuna]'" in command.stderr
