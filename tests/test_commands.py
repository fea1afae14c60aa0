"""The command line: what it prints and writes, one command after another; every mistake gets words and exit code 2."""

from __future__ import annotations

import errno
import json
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
from pruning_lib.__main__ import app
from pruning_lib.operators.scores import Scores
from pruning_lib.steps.training import TrainedPruner


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


def pixels(path: Path) -> bytes:
    with Image.open(path) as found:
        return found.tobytes()


@pytest.fixture(scope="module")
def scored(tiny_pipeline, tmp_path_factory):
    """Scores of the tiny pipeline, of two kinds of operators."""
    target = tmp_path_factory.mktemp("scored") / "scores.safetensors"
    kinds = ("--kind", "resnet", "--kind", "downsampler")
    out = runs("score", tiny_pipeline, target, "--latents", 2, "--steps", 2, *kinds)
    assert f"Saved in {target}" in out and "down_blocks.0.resnets.0" in out
    assert list(target.parent.iterdir()) == [target], "nothing else is left behind"
    return target


@pytest.fixture(scope="module")
def schedule(tiny_pipeline, tmp_path_factory):
    """A schedule of four steps for the tiny pipeline."""
    target = tmp_path_factory.mktemp("schedule") / "half.json"
    out = runs("schedule", "make", tiny_pipeline, target, "--keep-macs", 0.5, "--steps", 4)
    made = pl.Schedule.load(target)
    assert made.steps == 4 and made.grid.grain == "layers" and made.macs_ratio() == 0.5
    assert out.startswith("uniform: 50.0 % of the MACs kept")
    assert f"can follow {target}" in runs("schedule", "check", target, tiny_pipeline)
    return target


@pytest.fixture(scope="module")
def others(tiny_pipeline, tmp_path_factory):
    """A pipeline of another, slower denoiser, and one of other timesteps."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=32, block_out_channels=(64, 64), norm_num_groups=4, **blocks)
    folder, moved = tmp_path_factory.mktemp("other"), DDPMScheduler(timestep_spacing="trailing")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "slow")
    DDPMPipeline(pl.load(tiny_pipeline).unet, moved).save_pretrained(folder / "moved")
    return folder / "slow", folder / "moved"


def test_what_only_looks(tiny_pipeline):
    out = runs("models")
    assert all(info.name in out and info.repo in out and info.licence in out for info in pl.models())
    stamp = json.loads(runs("passport"))
    assert stamp["device"] == "cpu" and stamp["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    out = runs("macs", "sd-1.5")
    total = next(line for line in out.splitlines() if line.startswith("total"))
    assert "859.5 M" in total and "401.6 G" in total and "338.6 G" in total
    assert "with and without attention products" in out and "sample [1, 4, 64, 64]" in out
    expected = pl.count_macs(pl.denoiser_on_meta(tiny_pipeline), sample_size=16).to_dict()
    assert json.loads(runs("macs", tiny_pipeline, "--sample-size", 16, "--json")) == json.loads(json.dumps(expected))
    assert "resnets.0" not in out and "resnets.0" in runs("macs", tiny_pipeline, "--depth", 2)


def test_bench_compares_with_the_first_and_records(tiny_pipeline, others, tmp_path):
    file, slow = tmp_path / "new/bench.json", str(others[0])
    out = runs("bench", slow, tiny_pipeline, "--repeats", 5, "--warmup", 1, "--record", file)
    record = pl.load_record(file)
    latency = record["data"]["latency"][slow]
    assert len(latency["times_ms"]) == 5 and min(latency["times_ms"]) > 0 and latency["warmup"] == 1
    assert f"{latency['median_ms']:.2f} ms ({latency['p10_ms']:.2f} to {latency['p90_ms']:.2f}), n = 5" in out
    assert record["passport"]["n"] == 5 and record["passport"]["hardware"] in out
    faster = record["data"]["times_as_fast"]
    assert list(faster) == [str(tiny_pipeline)] and faster[str(tiny_pipeline)]["low"] > 1
    assert f"times as fast as {slow}" in out


def test_generate_writes_what_the_pipeline_draws_at_its_own_guidance(tmp_path):
    out = runs("generate", "lion", "red heart!", "--steps", 2, "--seed", 5, "--out", tmp_path / "new")
    paths = [tmp_path / "new/00-lion-5.png", tmp_path / "new/01-red-heart-5.png"]
    assert out.splitlines() == list(map(str, paths)) and sorted((tmp_path / "new").iterdir()) == paths
    noise = torch.Generator().manual_seed(5)
    drawn = pl.load("emoji-sd")("lion", num_inference_steps=2, guidance_scale=3.0, generator=noise).images[0]
    assert pixels(paths[0]) == drawn.tobytes() != pixels(paths[1])


def test_prune_saves_what_the_library_prunes(tiny_pipeline, tmp_path):
    out = runs("prune", tiny_pipeline, tmp_path / "small", "--sparsity", 0.4, "--scope", "random", "--seed", 3)
    assert "total" in out and f"Saved in {tmp_path / 'small'}" in out and len(list(tmp_path.iterdir())) == 1
    wanted, found = pl.load(tiny_pipeline).unet, pl.load(tmp_path / "small").unet
    pl.prune_magnitude(wanted, 0.4, scope="random", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))
    told = json.loads(runs("prune", tiny_pipeline, tmp_path / "spared", "--ignore", "mid_block*", "--json"))
    assert told["asked"] == 0.3 and not any(row["name"].startswith("mid_block") for row in told["layers"])


def test_cut_saves_what_is_left_and_cuts_it_again(tiny_pipeline, scored, tmp_path):
    told = json.loads(runs("cut", tiny_pipeline, tmp_path / "small", "--scores", scored, "--count", 2, "--json"))
    wanted = Scores.load(scored).lowest(2)
    assert pl.Plan.from_dict(told["plan"]) == wanted
    a, b = (pl.count_macs(pl.load(folder).unet) for folder in (tiny_pipeline, tmp_path / "small"))
    assert told["params_ratio"] == pytest.approx(1 - b.params / a.params) and b.params < a.params
    assert told["macs_ratio"] == pytest.approx(1 - b.macs / a.macs)
    plan = wanted.save(tmp_path / "plan.json")
    assert "2 operators of a UNet2DModel" in runs("cut", tiny_pipeline, tmp_path / "again", "--plan", plan)
    assert pl.count_macs(pl.load(tmp_path / "again").unet).to_dict() == b.to_dict()
    target = tmp_path / "scores.safetensors"
    runs("score", tmp_path / "small", target, "--latents", 2, "--steps", 1, "--kind", "upsampler")
    runs("cut", tmp_path / "small", tmp_path / "smaller", "--scores", target, "--count", 1)
    assert len(pl.load(tmp_path / "smaller").unet.config["pruning_lib"]["plans"]) == 2


def test_time_is_measured_as_the_pipeline_calls_its_denoiser(scored, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Scores, "lowest", lambda self, **budget: asked.append(budget) or 1 / 0)
    for guidance in ((), ("--guidance", 1)):
        run("cut", "emoji-sd", tmp_path / "new", "--scores", scored, "--latency", 0.2, *guidance)
    assert [(budget["latency_ratio"], budget["batch"]) for budget in asked] == [(0.2, 2), (0.2, 1)]


def test_a_schedule_is_shown_as_text_numbers_and_picture(tiny_pipeline, tmp_path):
    grid = pl.grid_of(pl.load(tiny_pipeline), 4)
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1, -1] = False  # all else of this row is read by nobody
    schedule = grid.schedule(on, method="by hand")
    file = schedule.save(tmp_path / "a.json")
    *lines, calls, told, _ = runs("schedule", "show", file, "--plot", tmp_path / "a.png").splitlines()
    assert [line.split()[0] for line in lines] == list(grid.names)
    assert [line.split()[1] for line in lines] == ["#x##"] * (len(lines) - 1) + ["#.##"]
    assert calls.endswith("  | ||") and told.startswith("by hand: 75.0 % of the MACs kept")
    assert "3 of 4 calls" in told and f"{len(lines) - 1} dead, hold value" in told
    dead, reused = (pixels(tmp_path / "a.png").count(bytes.fromhex(colour)) for colour in ("b9b4a7", "e8e6df"))
    assert dead == (len(lines) - 1) * reused > 0
    costs = json.loads(runs("schedule", "show", file, "--json"))
    assert costs["macs"] == schedule.macs() and costs["keep_macs"] == 0.75 and costs["calls"] == 3


def test_from_a_trained_pruner_to_pictures_and_times(tiny_pipeline, tmp_path):
    pruner = tmp_path / "pruner.safetensors"
    (tmp_path / "prompts.txt").write_text("0\n\n1\n")
    train = ("--keep-macs", 0.6, "--iterations", 2, "--batch", 1, "--steps", 3)
    out = runs("train-pruner", tiny_pipeline, pruner, "--prompts", tmp_path / "prompts.txt", *train)
    trained = TrainedPruner.load(pruner)
    assert out.startswith("iteration    1  loss ") and f"Saved in {pruner}" in out
    assert trained.budgets == (0.6,) and trained.settings["prompts"] == 2 and len(trained.history) == 2

    options = ("--keep-macs", 0.7, "--scores", pruner, "--method")
    runs("schedule", "make", tiny_pipeline, tmp_path / "a.json", *options, "scores")
    assert pl.Schedule.load(tmp_path / "a.json") == trained.schedule(0.7)
    wrong = refused("schedule", "make", tiny_pipeline, tmp_path / "b.json", *options, "scores", "--steps", 9)
    assert "is for 3 steps, and --steps 9" in wrong
    runs("schedule", "make", tiny_pipeline, tmp_path / "b.json", *options, "search", "--prompt", 0, "--images", 1)
    schedule, pipe = pl.Schedule.load(tmp_path / "b.json"), pl.load(tiny_pipeline)
    assert schedule.steps == 3 and schedule.macs_ratio() <= 0.7
    deep = ("--keep-macs", 0.7, "--method", "deepcache", "--steps", 3, "--hold", "prediction")
    runs("schedule", "make", tiny_pipeline, tmp_path / "c.json", *deep)
    assert pl.Schedule.load(tmp_path / "c.json").hold == "prediction"

    runs("generate", 0, "--model", tiny_pipeline, "--schedule", tmp_path / "b.json", "--out", tmp_path / "b.png")
    call = {"num_inference_steps": 3, "generator": [torch.Generator().manual_seed(0)]}
    with schedule.applied(pipe):
        assert pixels(tmp_path / "b.png") == pipe(batch_size=1, **call).images[0].tobytes()
    timing = ("--prompt", 0, "--repeats", 2, "--warmup", 0)
    out = runs("bench", tiny_pipeline, "--schedule", tmp_path / "b.json", *timing)
    assert "with b.json is " in out and "pipeline, batch 1" in out
    assert all(path.is_file() for path in tmp_path.iterdir()), "nothing unfinished is left behind"


# (command, words); NEW is a target that must not be there afterwards, and the other words in capitals are fixtures.
MISTAKES = [
    ("macs sd1.5", "Did you mean 'sd-1.5'"),
    ("bench TINY TINY", "given twice"),
    ("bench TINY OTHER --schedule SCHEDULE", "one model"),
    ("bench no/such-model --device warp", "Unknown device 'warp'"),
    ("bench emoji-sd --record FILE/b.json", "Nothing was measured yet"),
    ("generate lion --model OTHER --schedule SCHEDULE --out NEW", "another denoiser"),
    ("generate lion --out FILE", "no file can be written there"),
    ("generate a b --out x.png", "do not fit into one file"),
    ("generate lion --out x.jpg", "saved as PNG"),
    ("prune TINY NEW --part vae", "no part 'vae'"),
    ("prune TINY TAKEN", "exists already. Give a new folder"),
    ("score TINY scores.txt", "does not end in .safetensors"),
    ("score emoji-sd NEW.safetensors", "There is no prompt: give --prompt TEXT"),
    ("cut TINY NEW --scores SCORES --count 1 --macs 0.1", "either --scores, with one budget"),
    ("cut TINY NEW --plan PLAN --count 1", "1 of the four"),
    ("cut emoji-sd NEW --scores SCORES --count 1", "this denoiser is a UNet2DConditionModel"),
    ("train-pruner TINY NEW.safetensors --prompts none.txt", "none.txt"),
    ("schedule make TINY NEW.json --keep-macs 0.5 --scores SCHEDULE", "goes with --scores FILE"),
    ("schedule make TINY NEW.json --keep-macs 0.5 --method scores --scores SCORES", "holds no pruner"),
    ("schedule show DAMAGED", "is not valid JSON"),
    ("schedule show SCHEDULE --plot a.gif", "allowed: .png, .pdf"),
    ("schedule check SCHEDULE MOVED", "other timesteps"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistakes_are_told_and_leave_nothing(
    tiny_pipeline, others, scored, schedule, tmp_path, monkeypatch, command, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "damaged.json").write_text(schedule.read_text()[:-40])
    plan = Scores.load(scored).lowest(1).save(tmp_path / "plan.json")
    before = sorted(tmp_path.rglob("*"))
    names = {"TINY": tiny_pipeline, "OTHER": others[0], "MOVED": others[1], "SCORES": scored, "SCHEDULE": schedule}
    names |= {"PLAN": plan, "FILE": "file", "TAKEN": "taken.png", "DAMAGED": "damaged.json", "NEW": "new"}
    for name, path in names.items():
        command = re.sub(rf"\b{name}\b", str(path), command)
    assert words in refused(*command.split())
    after = [path for path in sorted(tmp_path.rglob("*")) if path != tmp_path / "new" or any(path.iterdir())]
    assert after == before


def test_what_is_an_error_of_the_users_of_ours_and_of_nobody(monkeypatch):
    code, _, said = run("--traceback", "macs", "sd1.5")
    assert code == 2 and "Traceback" in said and "ValueError" in said

    def run_models_that_raise(error: BaseException):
        def broken():
            raise error

        monkeypatch.setattr(pl, "models", broken, raising=False)
        return run("models")

    assert run_models_that_raise(typer.Exit(7)) == (7, "", "")
    assert run_models_that_raise(BrokenPipeError(errno.EPIPE, "as `| head` leaves it")) == (1, "", "")
    code, _, said = run_models_that_raise(KeyboardInterrupt("run the same command to go on"))
    assert code == 130 and "the same command" in said
    run_models_that_raise(KeyError("a defect of ours"))
    assert isinstance(CliRunner().invoke(app, ["models"]).exception, KeyError)
    for command in (["bench"], ["schedule"], ["schedule", "make"], ["train-pruner"]):
        assert f"pruning-lib {' '.join(command)}" in runs(*command, "--help")


def test_as_a_program(root):
    command = [sys.executable, "-X", "importtime", "-m", "pruning_lib", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    for name in "models macs bench generate passport inspect slim prune score cut train-pruner schedule".split():
        assert re.search(rf"^ +{name} ", done.stdout, re.M), name
    assert done.returncode == 0 and not re.search(r"\| +(torch|numpy)$", done.stderr, re.M), "help imports no torch"
