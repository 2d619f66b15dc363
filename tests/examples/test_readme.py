"""README.md and the pages beside it: every Python block runs, every command and option exists, every link leads on."""

import contextlib
import io
import re
import runpy
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "examples/choosing.md"]

# what the reader has before a block, by the block's first line
DEFINITIONS = {
    "from functools import partial": "import torch\nimages = torch.rand(2, 3, 32, 32)",
    "from pmsn_plugins import swap_neurons": """
import snntorch as snn
from spikingjelly.activation_based import layer, neuron
recurrent = layer.LinearRecurrentContainer(neuron.LIFNode(), in_features=4, out_features=4, bias=True, step_mode="m")
spikingjelly_net = nn.Sequential(nn.Linear(3, 4), recurrent)
snntorch_net = nn.Sequential(nn.Linear(3, 4), snn.RSynaptic(alpha=0.9, beta=0.8, linear_features=4, init_hidden=True))
""",
}


def blocks(page, language):
    """The code blocks of a page: (line of the first line of code, code)."""
    text = (ROOT / page).read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


def commands():
    """Every command of the bash blocks and every `python ...` within a line, as words."""
    lines = [line for page in PAGES for _, block in blocks(page, "bash") for line in block.splitlines()]
    lines += [code for page in PAGES for code in re.findall(r"`(python [^`]+)`", (ROOT / page).read_text())]
    words = (shlex.split(line, comments=True) for line in lines)
    return [command for line in words for command in split_at("&&", line) if command]


def split_at(mark, words):
    parts = [[]]
    for word in words:
        parts[-1].append(word) if word != mark else parts.append([])
    return parts


@cache
def help_of(*program):
    """What it prints; in this process, for each of its own would import PyTorch first."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", [program[-1], "--help"])
        patch.setattr(sys, "path", [*sys.path])
        if program[0] == "-m":
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / program[0]), run_name="__main__")
    assert not left.value.code
    return shown.getvalue()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    found = blocks(page, "python")
    assert found
    for line, code in found:
        exec(DEFINITIONS.get(code.partition("\n")[0], ""), names)
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)  # a traceback names the line of the page
    assert not list(tmp_path.iterdir())


def test_commands_and_options_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = commands()
    assert len(found) > 10
    for command in found:
        if "pip" in command[:3]:
            named = re.findall(r"\[(.*?)\]", command[-1])
            assert set(",".join(named).split(",")) <= {*extras, ""}, command
            continue
        if command[0] == "pytest":
            continue
        if command[0] == "torchrun":
            command = ["python", *command[command.index("-m") :]]
        assert command[0] == "python", command
        program = command[1:3] if command[1] == "-m" else command[1:2]
        shown = help_of(*program)
        for option in (word for word in command if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), (option, command)


def test_presets_exist_and_are_counted():
    from pmsn_plugins.training import PRESETS

    trained = [command for command in commands() if "pmsn_plugins.train" in command]
    following = [command[command.index("pmsn_plugins.train") + 1 :] for command in trained]
    named = [words[0] for words in following if words and not words[0].startswith("-")]
    assert named and set(named) <= set(PRESETS)
    assert f"{len(PRESETS)} presets" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert ((ROOT / page).parent / path).exists() if path else anchor in anchors, link
