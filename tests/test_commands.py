"""The command line: what it prints and writes, and that every mistake gets words and exit code 2, and leaves nothing.

`test_chain.py` walks from one command to the next.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.commands import app
from pruning_lib.operators.scores import Scores
from pruning_lib.steps.budget import uniform
from pruning_lib.steps.training import TrainedPruner
from pruning_lib.weights.select import prunable_weights

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> tuple[int, str, str]:
    """Return exit code, what was printed, and what was said on the error stream, in one line."""
    done = CliRunner().invoke(app, list(map(str, arguments)), prog_name="pruning-lib")
    return done.exit_code, done.stdout, re.sub(r"[\s│]+", " ", done.stderr)


def runs(*arguments: object) -> str:
    code, out, said = run(*arguments)
    assert code == 0, said
    return out


def refused(*arguments: object) -> str:
    code, _, said = run(*arguments)
    assert code == 2 and said and "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def scored(tiny_pipeline, tmp_path_factory):
    """Scores of the tiny pipeline, of two kinds of operators."""
    target = tmp_path_factory.mktemp("scored") / "scores.safetensors"
    kinds = ("--kind", "resnet", "--kind", "downsampler")
    out = runs("score", tiny_pipeline, target, "--latents", 2, "--steps", 2, *kinds)
    assert f"Saved in {target}" in out and "down_blocks.0.resnets.0" in out
    assert [path.name for path in target.parent.iterdir()] == [target.name], "nothing else is left behind"
    return target


@pytest.fixture(scope="module")
def schedule(tiny_pipeline, tmp_path_factory):
    """A schedule of four steps for the tiny pipeline."""
    target = tmp_path_factory.mktemp("schedule") / "half.json"
    runs("schedule", "make", tiny_pipeline, target, "--keep-macs", 0.5, "--steps", 4)
    return target


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A pipeline of another, slower denoiser."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=32, block_out_channels=(64, 64), norm_num_groups=4, **blocks)
    folder = tmp_path_factory.mktemp("other") / "pipe"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def test_models_lists_what_load_knows():
    out = runs("models")
    assert all(info.name in out and info.repo in out and info.licence in out for info in pl.models())


def test_macs_prints_the_report(tiny_pipeline):
    out = runs("macs", "sd-1.5")
    total = next(line for line in out.splitlines() if line.startswith("total"))
    assert "859.5 M" in total and "401.6 G" in total and "338.6 G" in total
    assert "with and without attention products" in out and "sample [1, 4, 64, 64]" in out
    expected = pl.count_macs(pl.denoiser_on_meta(tiny_pipeline), sample_size=16).to_dict()
    assert json.loads(runs("macs", tiny_pipeline, "--sample-size", 16, "--json")) == json.loads(json.dumps(expected))
    shallow, deep = (runs("macs", tiny_pipeline, "--depth", depth) for depth in (1, 2))
    assert "down_blocks.0.resnets.0" not in shallow and "resnets.0" in deep


def test_bench_compares_with_the_first_and_records(tiny_pipeline, other, tmp_path):
    file = tmp_path / "new/bench.json"
    out = runs("bench", other, tiny_pipeline, "--repeats", 5, "--warmup", 1, "--record", file)
    record = pl.load_record(file)
    latency = record["data"]["latency"][str(other)]
    assert len(latency["times_ms"]) == 5 and min(latency["times_ms"]) > 0 and latency["warmup"] == 1
    assert f"{latency['median_ms']:.2f} ms ({latency['p10_ms']:.2f} to {latency['p90_ms']:.2f}), n = 5" in out
    assert record["passport"]["n"] == 5 and record["passport"]["hardware"] in out
    faster = record["data"]["times_as_fast"]
    assert list(faster) == [str(tiny_pipeline)] and faster[str(tiny_pipeline)]["low"] > 1
    assert f"times as fast as {other}" in out


def test_generate_writes_what_the_pipeline_and_the_schedule_draw(tmp_path):
    pipe = pl.load("emoji-sd")
    schedule = uniform(pl.grid_of(pipe, 2), 0.5)
    file = schedule.save(tmp_path / "half.json")

    def drawn(seed: int) -> bytes:
        noise = torch.Generator().manual_seed(seed)
        return pipe("lion", num_inference_steps=2, guidance_scale=3.0, generator=noise).images[0].tobytes()

    def saved(path: Path) -> bytes:
        with Image.open(path) as found:
            return found.tobytes()

    out = runs("generate", "lion", "red heart!", "--steps", 2, "--seed", 5, "--out", tmp_path / "new")
    paths = [tmp_path / "new/00-lion-5.png", tmp_path / "new/01-red-heart-5.png"]
    assert out.splitlines() == list(map(str, paths)) and sorted((tmp_path / "new").iterdir()) == paths
    assert saved(paths[0]) == drawn(5) != drawn(6)
    runs("generate", "lion", "--schedule", file, "--steps", 2, "--seed", 5, "--out", tmp_path / "one.png")
    with schedule.applied(pipe):
        assert saved(tmp_path / "one.png") == drawn(5) != saved(paths[0])


def test_passport():
    stamp = json.loads(runs("passport"))
    assert stamp["device"] == "cpu" and stamp["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("scope", ["global", "random"])
def test_prune_writes_exactly_as_many_zeros(tiny_pipeline, tmp_path, scope):
    def zeros(folder: Path) -> tuple[int, int]:
        weights = prunable_weights(DDPMPipeline.from_pretrained(folder).unet).weights.values()
        return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)

    out = runs("prune", tiny_pipeline, tmp_path / "small", "--sparsity", 0.4, "--scope", scope)
    count, n = zeros(tmp_path / "small")
    assert abs(count - 0.4 * n) <= 0.5 and zeros(tiny_pipeline)[0] == 0
    assert "total" in out and f"Saved in {tmp_path / 'small'}" in out
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing else is left behind"
    found = json.loads(runs("prune", tiny_pipeline, tmp_path / "spared", "--ignore", "mid_block*", "--json"))
    assert found["asked"] == 0.3 and not any(row["name"].startswith("mid_block") for row in found["layers"])


def test_cut_saves_what_is_left_and_cuts_it_again(tiny_pipeline, scored, tmp_path):
    told = json.loads(runs("cut", tiny_pipeline, tmp_path / "small", "--scores", scored, "--count", 2, "--json"))
    wanted = Scores.load(scored).lowest(2)
    assert pl.Plan.from_dict(told["plan"]) == wanted
    small = pl.load(tmp_path / "small")
    a, b = (pl.count_macs(pipe.unet) for pipe in (pl.load(tiny_pipeline), small))
    assert told["params_ratio"] == pytest.approx(1 - b.params / a.params) and b.params < a.params
    assert told["macs_ratio"] == pytest.approx(1 - b.macs / a.macs)

    plan = wanted.save(tmp_path / "plan.json")
    assert "2 operators of a UNet2DModel" in runs("cut", tiny_pipeline, tmp_path / "again", "--plan", plan)
    assert pl.load(tmp_path / "again").unet.config["pruning_lib"] == small.unet.config["pruning_lib"]
    budget = runs("cut", tiny_pipeline, tmp_path / "tenth", "--scores", scored, "--macs", 0.1, "--json")
    assert json.loads(budget)["macs_ratio"] >= 0.1

    target = tmp_path / "scores.safetensors"
    runs("score", tmp_path / "small", target, "--latents", 2, "--steps", 1, "--kind", "upsampler")
    runs("cut", tmp_path / "small", tmp_path / "smaller", "--scores", target, "--count", 1)
    assert len(pl.load(tmp_path / "smaller").unet.config["pruning_lib"]["plans"]) == 2


def test_time_is_measured_as_the_pipeline_calls_its_denoiser(tmp_path, monkeypatch):
    asked = {}

    def lowest(self, **budget):
        asked.update(budget)
        raise ValueError("enough")

    monkeypatch.setattr(Scores, "load", classmethod(lambda cls, path: object.__new__(cls)))
    monkeypatch.setattr(Scores, "lowest", lowest)
    for guidance, batch in (((), 2), (("--guidance", 1), None)):
        asked.clear()
        refused("cut", "emoji-sd", tmp_path / "new", "--scores", "any", "--latency", 0.2, *guidance)
        assert asked["latency_ratio"] == 0.2 and asked.get("batch") == batch


@pytest.mark.parametrize("method", ["uniform", "deepcache"])
def test_a_schedule_is_made_within_its_budget_and_can_be_followed(tiny_pipeline, tmp_path, method):
    target, options = tmp_path / "a.json", ("--method", method, "--hold", "prediction")
    out = runs("schedule", "make", tiny_pipeline, target, "--keep-macs", 0.5, "--steps", 6, *options)
    made = pl.Schedule.load(target)
    assert made.steps == 6 and 0.3 < made.macs_ratio() <= 0.5 and made.grid.grain == "layers"
    assert made.hold == "prediction" and f"{100 * made.macs_ratio():.1f} % of the MACs kept" in out
    assert f"can follow {target}" in runs("schedule", "check", target, tiny_pipeline)


def test_a_schedule_is_shown_as_text_numbers_and_picture(tiny_pipeline, tmp_path):
    grid = pl.grid_of(pl.load(tiny_pipeline), 4)
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1, -1] = False  # all else of this row is read by nobody
    schedule = grid.schedule(on, method="by hand")
    file = schedule.save(tmp_path / "a.json")
    *lines, calls, told, drawn = runs("schedule", "show", file, "--plot", tmp_path / "a.png").splitlines()
    assert [line.split()[0] for line in lines] == list(grid.names)
    assert [line.split()[1] for line in lines] == ["#x##"] * (len(lines) - 1) + ["#.##"]
    assert calls.endswith("  | ||") and told.startswith("by hand: 75.0 % of the MACs kept")
    assert "3 of 4 calls" in told and f"{len(lines) - 1} dead, hold value" in told
    assert drawn == f"Drawn in {tmp_path / 'a.png'}"
    with Image.open(tmp_path / "a.png") as picture:
        colours = {colour: count for count, colour in picture.getcolors(9999)}
    computed, dead, reused = (colours[colour] for colour in ((0, 0x72, 0xB2), (0xB9, 0xB4, 0xA7), (0xE8, 0xE6, 0xDF)))
    assert (computed, dead) == ((3 * len(lines)) * reused, (len(lines) - 1) * reused)
    costs = json.loads(runs("schedule", "show", file, "--json"))
    assert costs["macs"] == schedule.macs() and costs["keep_macs"] == 0.75 and costs["calls"] == 3


def test_a_schedule_of_trained_scores(tiny_pipeline, tmp_path):
    grid = pl.grid_of(pl.load(tiny_pipeline), 5)
    tables = torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trained = TrainedPruner(grid, tables, (), [], {"recipe": "by chance"})
    options = ("--keep-macs", 0.6, "--method", "scores", "--scores", trained.save(tmp_path / "scores.safetensors"))
    runs("schedule", "make", tiny_pipeline, tmp_path / "a.json", *options)
    made = pl.Schedule.load(tmp_path / "a.json")
    assert made == trained.schedule(keep_macs=0.6) and made.macs_ratio() <= 0.6
    wrong = refused("schedule", "make", tiny_pipeline, tmp_path / "b.json", *options, "--steps", 9)
    assert "is for 5 steps, and --steps 9" in wrong


def test_another_spacing_of_timesteps_is_found(tiny_pipeline, schedule, tmp_path):
    pipe = pl.load(tiny_pipeline)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.save_pretrained(tmp_path / "moved")
    assert "other timesteps" in refused("schedule", "check", schedule, tmp_path / "moved")


# (command, words); NEW is a target that must not be there afterwards, and the other words in capitals are fixtures.
MISTAKES = [
    ("macs sd1.5", "Did you mean 'sd-1.5'"),
    ("bench emoji_sd", "Did you mean 'emoji-sd'"),
    ("bench TINY TINY", "given twice"),
    ("bench TINY --part pipeline --repeats 1", "is unconditional"),
    ("bench TINY OTHER --schedule SCHEDULE", "one model"),
    ("bench TINY --part denoiser --schedule SCHEDULE", "--part pipeline"),
    ("bench TINY --schedule SCHEDULE --steps 5", "is for 4 steps, and --steps 5"),
    ("bench no/such-model --device warp", "Unknown device 'warp'"),
    ("bench emoji-sd --record FILE/b.json", "Nothing was measured yet"),
    ("bench emoji-sd --record b.txt", "does not end in .json"),
    ("generate", "prompts"),
    (f"generate lion --seed {2**64}", "--seed"),
    ("generate lion --model TINY --out NEW", "is unconditional"),
    ("generate lion --model OTHER --schedule SCHEDULE --out NEW", "another denoiser"),
    ("generate lion --schedule SCHEDULE --steps 5", "is for 4 steps, and --steps 5"),
    ("generate lion --out FILE", "no file can be written there"),
    ("generate a b --out x.png", "do not fit into one file"),
    ("generate lion --out x.jpg", "saved as PNG"),
    ("generate lion --out TAKEN", "taken by a folder"),
    ("passport --device warp", "Unknown device 'warp'"),
    ("prune TINY NEW --sparsity 1.5", "1.5 per cent is 0.015"),
    ("prune TINY NEW --part vae", "no part 'vae'"),
    ("prune TINY TAKEN", "exists already. Give a new folder"),
    ("score TINY scores.txt", "does not end in .safetensors"),
    ("score TINY SCORES", "exists already. Give a new file"),
    ("score emoji-sd NEW.safetensors", "There is no prompt: give --prompt TEXT"),
    ("cut TINY NEW --count 1", "either --scores"),
    ("cut TINY NEW --scores SCORES --plan PLAN", "either --scores"),
    ("cut TINY NEW --scores SCORES", "0 of the four"),
    ("cut TINY NEW --scores SCORES --count 1 --macs 0.1", "2 of the four"),
    ("cut TINY NEW --plan PLAN --count 1", "1 of the four"),
    ("cut TINY NEW --scores PLAN --count 1", "holds no scores"),
    ("cut emoji-sd NEW --scores SCORES --count 1", "this denoiser is a UNet2DConditionModel"),
    ("train-pruner TINY x.pt --prompt 0", "does not end in .safetensors"),
    ("train-pruner emoji-sd NEW.safetensors", "There is no prompt"),
    ("train-pruner TINY NEW.safetensors --prompt lion", "is unconditional"),
    ("train-pruner TINY NEW.safetensors --prompts none.txt", "none.txt"),
    ("schedule make TINY SCHEDULE --keep-macs 0.5", "exists already"),
    ("schedule make TINY new.txt --keep-macs 0.5", "does not end in .json"),
    ("schedule make TINY NEW.json --keep-macs 0.1 --steps 4", "Keep more, or sample with more steps"),
    ("schedule make TINY NEW.json --keep-macs 0.5 --method scores", "goes with --scores FILE"),
    ("schedule make TINY NEW.json --keep-macs 0.5 --scores SCHEDULE", "goes with --scores FILE"),
    ("schedule make TINY NEW.json --keep-macs 0.5 --method scores --scores SCORES", "holds no pruner"),
    ("schedule make emoji-sd NEW.json --keep-macs 0.5 --method search", "There is no prompt"),
    ("schedule show none.json", "No such file"),
    ("schedule show DAMAGED", "is not valid JSON"),
    ("schedule show SCHEDULE --plot a.gif", "allowed: .png, .pdf"),
    ("schedule check SCHEDULE OTHER", "another denoiser"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistakes_are_told_and_leave_nothing(
    tiny_pipeline, other, scored, schedule, tmp_path, monkeypatch, command, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "damaged.json").write_text(schedule.read_text()[:-40])
    plan = Scores.load(scored).lowest(1).save(tmp_path / "plan.json")
    before = sorted(tmp_path.rglob("*"))
    names = {"TINY": tiny_pipeline, "OTHER": other, "SCORES": scored, "SCHEDULE": schedule, "PLAN": plan}
    names |= {"FILE": "file", "TAKEN": "taken.png", "DAMAGED": "damaged.json", "NEW": "new"}
    for name, path in names.items():
        command = re.sub(rf"\b{name}\b", str(path), command)
    assert words in refused(*command.split())
    after = [path for path in sorted(tmp_path.rglob("*")) if path != tmp_path / "new" or any(path.iterdir())]
    assert after == before


def test_a_traceback_for_those_who_ask_and_for_our_own_defects(monkeypatch):
    code, _, said = run("--traceback", "macs", "sd1.5")
    assert code == 2 and "Traceback" in said and "ValueError" in said

    def broken():
        raise KeyError("a defect")

    monkeypatch.setattr(pl, "models", broken, raising=False)
    assert isinstance(CliRunner().invoke(app, ["models"]).exception, KeyError)


def test_an_exit_code_help_and_an_interruption_are_no_errors(monkeypatch):
    def leave():
        raise typer.Exit(7)

    def stop():
        raise KeyboardInterrupt("run the same command to go on")

    monkeypatch.setattr(pl, "models", leave, raising=False)
    assert run("models") == (7, "", "")
    monkeypatch.setattr(pl, "models", stop, raising=False)
    code, _, said = run("models")
    assert code == 130 and "the same command" in said
    for command in (["bench"], ["schedule"], ["schedule", "make"], ["train-pruner"]):
        assert f"pruning-lib {' '.join(command)}" in runs(*command, "--help")


def test_as_a_program():
    def program(*arguments: str, **where) -> subprocess.CompletedProcess:
        command = [sys.executable, "-X", "importtime", "-m", "pruning_lib", *arguments]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, **where)

    help_ = program("--help", stdout=subprocess.PIPE)
    for name in "models macs bench generate passport inspect slim prune score cut train-pruner schedule".split():
        assert re.search(rf"^ +{name} ", help_.stdout, re.M), name
    assert help_.returncode == 0 and not re.search(r"\| +(torch|numpy)$", help_.stderr, re.M), "help imports no torch"
    read, write = os.pipe()
    os.close(read)  # as `| head` leaves it
    closed = program("models", stdout=write)
    os.close(write)
    assert "Error" not in closed.stderr and "Traceback" not in closed.stderr
