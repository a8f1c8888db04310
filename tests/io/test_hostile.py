"""Files from elsewhere: pickles are not run, damage is named, memory is not taken before it is accounted for."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from canary import Canary
from safetensors.torch import load_file, save_file

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.infer import load, save

CASES = 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    q = pf.FlowDistribution(flows.get("nsf_coupling")(2, num_layers=2), pf.distributions.StudentTBase(2))
    return save(q, folder / "flow")


def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def refused(path):
    """Loading ends in a ValueError, or the object is whole: what else comes is a defect."""
    try:
        found = load(path)
    except ValueError as error:
        assert str(error)
        return str(error)
    assert isinstance(found, pf.FlowDistribution)
    return None


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_not_run(name, protocol, saved, tmp_path):
    path, canary = copied(saved, tmp_path), tmp_path / "canary"
    (path / name).write_bytes(pickle.dumps(Canary(canary), protocol=protocol))
    assert name in refused(path) and not canary.exists()
    torch.save({"weights": Canary(canary)}, path / name)
    assert name in refused(path) and not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # it would have shown


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_damage_is_named(name, saved, tmp_path):
    """Bit flips, truncation and noise: an error that names the file, or an object that is whole."""
    path, whole = copied(saved, tmp_path), (saved / name).read_bytes()
    chance = random.Random(0)
    seen = 0
    for case in range(CASES):
        data = bytearray(whole)
        kind = case % 4
        if kind == 0:
            data = data[: chance.randrange(len(data))]
        elif kind == 1:
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            start = chance.randrange(len(data))
            data[start : start + 64] = bytes(chance.randrange(256) for _ in range(64))
        else:
            data[:8] = chance.randrange(2**63).to_bytes(8, "little")
        (path / name).write_bytes(bytes(data))
        seen += refused(path) is not None
    assert seen > CASES / 3


ODD = [
    None,
    -1,
    0,
    2**40,
    10**12,
    1e300,
    "",
    "os.system",
    "../../etc/passwd",
    [],
    {},
    [[[[]]]],
    True,
    {"class": "Coupling"},
    {"class": "os.system", "args": ["true"]},
    {"class": "MLP", "args": [10**6, 10**6]},
    {"tensor": "x"},
    {"function": "eval"},
    {"same": 3},
    {"partial": "print", "args": [], "options": {}},
    {"distribution": "Normal"},
    {"dict": [[1]]},
    {"float": "nan"},
]


def mutated(config, chance):
    """A description with one entry of it replaced by something else."""
    config = copy.deepcopy(config)
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(config)
    node, key = chance.choice(places)
    node[key] = chance.choice(ODD)
    return config


def test_descriptions_of_anything_end_in_a_clear_error(saved, tmp_path):
    path, config = copied(saved, tmp_path), json.loads((saved / "config.json").read_text())
    chance = random.Random(1)
    said = set()
    for _ in range(CASES):
        (path / "config.json").write_text(json.dumps(mutated(config, chance)))
        said.add(refused(path))
    assert len(said) > 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format=99), "format 99"),
        (lambda c: c.update(kind="shell"), "kind 'shell'"),
        (lambda c: c["object"]["made"].update({"class": "subprocess.Popen"}), "'subprocess.Popen', which is not known"),
        (lambda c: c["object"]["made"].update({"surprise": 1}), "surprise"),
        (lambda c: c["object"].update(made={"class": "MLP", "args": [2 * 10**5, 2 * 10**5]}), "more than the file accounts for"),
        (lambda c: c["object"].update(made={"class": "MLP", "args": [2, 2, [64] * 10**4]}), "another object|accounts for"),
    ],
)
def test_what_is_not_known_or_too_large(change, said, saved, tmp_path):
    path = copied(saved, tmp_path)
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        load(path)


def test_a_nest_without_end_is_refused(saved, tmp_path):
    path = copied(saved, tmp_path)
    for depth in (100, 100_000):
        (path / "config.json").write_text(
            '{"format": 1, "kind": "transform", "object": {"made": ' + "[" * depth + "]" * depth + "}}"
        )
        with pytest.raises(ValueError, match="nested|damaged|recursion"):
            load(path)


def test_weights_of_another_kind(saved, tmp_path):
    path = copied(saved, tmp_path)
    weights = load_file(path / "weights.safetensors")
    name = next(key for key in weights if key.endswith("weights"))
    for change, said in (
        ({name: torch.full_like(weights[name], torch.nan)}, "NaN"),
        ({name: weights[name][:-1]}, "shape"),
        ({name: weights[name].long()}, "dtype"),
        ({"object.more": torch.zeros(2)}, "not known"),
        ({name: weights[name].to(torch.float8_e4m3fn)}, "dtype|which no object"),
    ):
        save_file({**weights, **change}, path / "weights.safetensors")
        with pytest.raises(ValueError, match=said):
            load(path)
    save_file({key: value for key, value in weights.items() if key != name}, path / "weights.safetensors")
    with pytest.raises(ValueError, match="missing"):
        load(path)


def test_links_and_missing_files(saved, tmp_path):
    path = copied(saved, tmp_path)
    (path / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights\.safetensors is not there"):
        load(path)
    (path / "weights.safetensors").symlink_to(saved / "weights.safetensors")
    with pytest.raises(ValueError, match="no plain file"):
        load(path)
    with pytest.raises(ValueError, match="is not there"):
        load(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is there already"):
        save(flows.get("affine")(2), tmp_path / "link")
    with pytest.raises(ValueError, match="is not replaced"):
        save(flows.get("affine")(2), tmp_path / "link", overwrite=True)


def test_no_file_of_a_checkpoint_is_run(tmp_path):
    def fit():
        options = {"flow_options": {"num_layers": 1, "hidden_dims": (4,)}, "max_epochs": 2, "seed": 0, "progress": False}
        return pf.fit_density(
            "maf", torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), checkpoint=tmp_path / "run", **options
        )

    fit()
    canary = tmp_path / "canary"
    names = [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"]
    assert names
    for name in names:
        path = tmp_path / "run" / name
        kept = path.read_bytes()
        for evil in (pickle.dumps(Canary(canary)), pickle.dumps(Canary(canary), protocol=0)):
            path.write_bytes(evil)
            with pytest.raises(ValueError, match=name):
                fit()
        path.write_bytes(kept)
    fit()
    assert not canary.exists()


def test_a_checkpoint_of_a_loop_is_not_run(tmp_path):
    path, canary = tmp_path / "run.pt", tmp_path / "canary"
    for write in (lambda: path.write_bytes(pickle.dumps(Canary(canary))), lambda: torch.save({"step": Canary(canary)}, path)):
        write()
        with pytest.raises(ValueError, match="no checkpoint, or a damaged one"):
            pf.infer.Checkpoint(path, loss=torch.nn.Linear(1, 1)).load()
    assert not canary.exists()


def test_draws_of_a_fit_are_not_read(tmp_path):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    pf.fit(model, seed=0, max_steps=5, progress=False).save(tmp_path / "fit", draws=20)
    canary = tmp_path / "canary"
    (tmp_path / "fit" / "draws.nc").write_bytes(pickle.dumps(Canary(canary)))
    assert pf.load(tmp_path / "fit", model).sample(3)["x"].shape == (3,)
    assert not canary.exists()
