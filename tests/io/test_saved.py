"""Saving and loading: everything comes back bit by bit, in another process too; another model, version or class is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.infer import load, save
from pyro_flows.io import describe, register, restore
from pyro_flows.nn import MLP

SHAPES = {"vector": 3, "image": (1, 8, 8), "sphere": 3, "torus": 2, "simplex": 3}
ENTRIES = [(event, name, context) for event in SHAPES for name in flows.names(event) for context in (0, 2)]


def moved(module):
    """Away from where it starts."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def passes(flow, context_dim):
    """Draws, their densities, and the way back."""
    torch.manual_seed(1)
    q = pf.FlowDistribution(flow)
    q = q.condition(torch.linspace(-1, 1, context_dim)) if context_dim else q
    draws = q.sample((3,))
    return draws, q.log_prob(draws.clone())


@pytest.mark.parametrize(("event", "name", "context"), ENTRIES)
def test_every_registered_flow_comes_back_bit_by_bit(event, name, context, tmp_path):
    torch.manual_seed(0)
    flow = moved(flows.get(name)(SHAPES[event], context))
    path = save(flow, tmp_path / "flow")
    torch.manual_seed(5)
    again = load(path)
    assert type(again) is type(flow) and repr(again) == repr(flow)
    for ours, theirs in zip(passes(flow, context), passes(again, context), strict=True):
        assert torch.equal(ours, theirs)


def test_another_process_with_another_seed(tmp_path):
    torch.manual_seed(0)
    names = flows.names()
    expected = {}
    for name in names:
        flow = moved(flows.get(name)(2))
        save(flow, tmp_path / name)
        expected[name] = [value.tolist() for value in passes(flow, 0)]
    script = (
        "import json, sys, torch, pyro_flows as pf\n"
        "torch.set_num_threads(1)\n"
        "torch.manual_seed(99)\n"
        "found = {}\n"
        "for name in pf.flows.names():\n"
        "    flow = pf.load(sys.argv[1] + '/' + name)\n"
        "    torch.manual_seed(1)\n"
        "    q = pf.FlowDistribution(flow)\n"
        "    draws = q.sample((3,))\n"
        "    found[name] = [draws.tolist(), q.log_prob(draws.clone()).tolist()]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


BASES = {
    "student": lambda: pf.distributions.StudentTBase(2),
    "mixture": lambda: pf.distributions.MixtureBase(2, 3),
    "laplace": lambda: dist.Laplace(torch.zeros(2), 2.0).to_event(1),
    "full": lambda: dist.MultivariateNormal(torch.ones(2), scale_tril=torch.tensor([[1.0, 0.0], [0.5, 2.0]])),
}


@pytest.mark.parametrize("base", BASES)
def test_bases(base, tmp_path):
    torch.manual_seed(0)
    q = pf.FlowDistribution(moved(flows.get("nsf_coupling")(2)), BASES[base]())
    again = load(save(q, tmp_path / "q"))
    x = torch.randn(5, 2)
    assert torch.equal(again.log_prob(x), q.log_prob(x)) and type(again.base) is type(q.base)


def test_mixtures_surjections_compositions_and_what_is_shared(tmp_path):
    torch.manual_seed(0)
    mixture = pf.distributions.FlowMixture([pf.FlowDistribution(moved(flows.get("affine")(2))) for _ in range(3)])
    x = torch.randn(5, 2)
    assert torch.equal(load(save(mixture, tmp_path / "mixture")).log_prob(x), mixture.log_prob(x))
    counts = pf.FlowDistribution(flows.of_symmetric(flows.get("real_nvp")(2)))
    assert torch.equal(load(save(counts, tmp_path / "symmetric")).log_prob(x), counts.log_prob(x))
    part = moved(pf.transforms.AffineTril(2))
    twice = pf.transforms.Compose([part, pf.transforms.Permutation([1, 0]), part, part.inv])
    again = load(save(twice, tmp_path / "twice"))
    assert again.parts[0] is again.parts[2] and again.parts[3].inv is again.parts[0]
    assert torch.equal(again(x), twice(x)) and len(list(again.parameters())) == len(list(twice.parameters()))
    frozen = flows.get("affine")(2).eval()
    frozen.params.bias.requires_grad_(False)
    again = load(save(frozen, tmp_path / "frozen"))
    assert not again.training and not again.params.bias.requires_grad and again.params.lower.requires_grad


def test_double_precision_and_another_dtype(tmp_path):
    flow = moved(flows.get("maf")(3).double())
    path = save(flow, tmp_path / "flow")
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(load(path)(x), flow(x))
    assert load(path, dtype=torch.float32)(x.float()).dtype == torch.float32
    assert load(path, device="cpu").input_dim == 3


def test_what_was_changed_after_it_was_made_is_refused(tmp_path):
    flow = flows.get("real_nvp")(2)
    flow.parts[0].network = MLP(1, 2)
    with pytest.raises(ValueError, match="would not come back as it is"):
        save(flow, tmp_path / "flow")
    with pytest.raises(ValueError, match="would not come back as it is: its batch and event shape"):
        save(pf.FlowDistribution(flows.get("affine")(2)).expand((3,)), tmp_path / "flow")
    assert list(tmp_path.iterdir()) == []


class Halve(pf.transforms.FlowTransform):
    def __init__(self, input_dim, by=2.0):
        super().__init__(input_dim)
        self.by = by

    def forward_and_log_det(self, x, context=None):
        return x / self.by, x.new_full(x.shape[:-1], -self.input_dim * float(torch.tensor(self.by).log()))

    def inverse_and_log_det(self, y, context=None):
        return y * self.by, y.new_full(y.shape[:-1], self.input_dim * float(torch.tensor(self.by).log()))


def test_a_class_of_ones_own_is_registered(tmp_path):
    flow = pf.transforms.Compose([Halve(2, by=4.0), pf.transforms.AffineTril(2)])
    with pytest.raises(ValueError, match="register the class"):
        save(flow, tmp_path / "flow")
    register(Halve)
    assert load(save(flow, tmp_path / "flow")).parts[0].by == 4.0
    with pytest.raises(ValueError, match="must be a class"):
        register(dict)
    with pytest.raises(ValueError, match="another class 'Coupling'"):
        register(type("Coupling", (pf.transforms.FlowTransform,), {}))


# Guides and fits


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    sd = pyro.sample("sd", dist.HalfNormal(5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, sd), obs=y)


def data():
    torch.manual_seed(0)
    x = torch.randn(30)
    return x, 2 * x + torch.randn(30)


@pytest.mark.parametrize("guide", ["affine", "nsf_coupling", "iaf", None])
def test_fits(guide, tmp_path):
    x, y = data()
    fit = pf.fit(regression, x, y, guide=guide, max_steps=60, seed=0, progress=False)
    fit.save(tmp_path / "fit", draws=50)
    torch.manual_seed(7)
    again = load(tmp_path / "fit", regression, x, y)
    for name, value in fit.sample(20, seed=3).items():
        assert torch.equal(again.sample(20, seed=3)[name], value)
    assert again.losses == fit.losses and again.record == fit.record and again.stop_reason == fit.stop_reason
    ours, theirs = fit.diagnose(500), again.diagnose(500)
    assert ours.elbo == pytest.approx(theirs.elbo, abs=1e-5) and ours.verdict == theirs.verdict
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == ["config.json", "draws.nc", "weights.safetensors"]


def directions(y):
    way = pyro.sample("way", pf.manifolds.VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), 2.0))
    angle = pyro.sample("angle", dist.VonMises(0.0, 1.0))
    pyro.sample("y", dist.Normal(way.sum(-1) + angle.cos(), 1.0), obs=y)


def test_charts_of_circles_and_spheres(tmp_path):
    guide = pf.AutoFlow(directions, flow="nsf_coupling").setup(torch.tensor(1.0))
    moved(guide)
    again = load(save(guide, tmp_path / "guide"), directions, torch.tensor(1.0))
    torch.manual_seed(0)
    ours = guide.distribution.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(again.distribution.sample((5,)), ours)
    assert all(torch.equal(again.constrain(ours)[0][name], value) for name, value in guide.constrain(ours)[0].items())


def schools(y, indices=None, size=12):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("schools", size, subsample=indices):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = MLP(1, 3, (8,))

    def forward(self, y, indices=None, size=12):
        return self.network(y[:, None])


@pytest.mark.parametrize("kind", ["embedding", "own"])
def test_guides_of_plates(kind, tmp_path):
    y = torch.linspace(-1, 1, 12)

    def make():
        return pf.AutoPlateFlow(schools, {"schools": 3 if kind == "embedding" else Own()})

    fit = pf.fit(schools, y, guide=make(), max_steps=20, seed=0, progress=False)
    path = fit.save(tmp_path / "fit")
    given = {} if kind == "embedding" else {"guide": make()}
    again = load(path, schools, y, **given)
    assert all(torch.equal(again.sample(10, seed=1)[name], value) for name, value in fit.sample(10, seed=1).items())
    if kind == "own":
        with pytest.raises(ValueError, match="guide is needed"):
            load(path, schools, y)
        with pytest.raises(ValueError, match="must be an AutoPlateFlow"):
            load(path, schools, y, guide=pf.AutoFlow(schools))


@pytest.mark.parametrize("encoder", [None, "mlp", "own"])
def test_amortised_guides_with_their_standardisation(encoder, tmp_path):
    def model(y=None):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.Uniform(0.0, 2.0))
        pyro.sample("y", dist.Normal(x.repeat(2), 1 + scale).to_event(1), obs=y)

    def make():
        networks = {None: None, "mlp": MLP(4, 3, (8,)), "own": nn.Sequential(nn.Linear(4, 3))}
        return pf.AmortizedFlow(model, networks[encoder], observed=["y"], num_members=2)

    guide = make()
    fit = pf.fit_amortized(guide, num_simulations=400, max_epochs=2, seed=0, progress=False)
    path = save(guide, tmp_path / "guide")
    y = torch.randn(3, 4)
    again = load(path, model, **({"guide": make()} if encoder == "own" else {}))
    draws = guide.sample(y, 5, seed=0)
    assert all(torch.equal(again.sample(y, 5, seed=0)[name], value) for name, value in draws.items())
    assert torch.equal(again.log_prob(draws, y), guide.log_prob(draws, y)) and torch.equal(again.p_value(y), guide.p_value(y))
    with pytest.raises(ValueError, match="save its guide"):
        save(fit, tmp_path / "fit")


def test_parameters_of_the_model(tmp_path):
    def model(y):
        sd = pyro.param("sd", torch.tensor(1.0), constraint=dist.constraints.positive)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x, sd), obs=y)

    y = 3 * torch.randn(20, generator=torch.Generator().manual_seed(0))
    fit = pf.fit(model, y, guide="affine", max_steps=50, seed=0, progress=False)
    path, value = fit.save(tmp_path / "fit"), pyro.param("sd").item()
    pyro.clear_param_store()
    again = load(path, model, y)
    assert pyro.param("sd").item() == value != 1.0
    assert again.diagnose(300).elbo == pytest.approx(fit.diagnose(300).elbo, abs=1e-4)


def test_density_fits(tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(300, 2) * 5 + 3
    fit = pf.fit_density("nsf_coupling", rows, max_epochs=2, seed=0, progress=False)
    again = load(save(fit, tmp_path / "fit"))
    assert torch.equal(again.log_prob(rows), fit.log_prob(rows)) and str(again) == str(fit) and again.losses == fit.losses


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda x, y: pyro.sample("slope", dist.Normal(0.0, 5.0)), "'sd' was there and is not"),
        (lambda x, y: (regression(x, y), pyro.sample("more", dist.Normal(0.0, 1.0))), "'more' is new"),
    ],
)
def test_another_model_is_refused(other, said, tmp_path):
    x, y = data()
    path = pf.fit(regression, x, y, guide="affine", max_steps=5, seed=0, progress=False).save(tmp_path / "fit")
    with pytest.raises(ValueError, match=said):
        load(path, other, x, y)
    with pytest.raises(ValueError, match=r"shape of observed site 'y' was \(30,\) and is \(20,\)"):
        load(path, regression, x[:20], y[:20])
    with pytest.raises(ValueError, match="model must be the Pyro model"):
        load(path)
    with pytest.raises(ValueError, match="takes those of its model"):
        load(path, regression, x, y, device="cpu")


def test_names_that_hold_in_files_are_unique():
    """Two classes of one name would be taken for each other."""
    from pyro_flows.io.known import classes
    from pyro_flows.nn.recorded import Recorded

    waiting, seen = [Recorded], {}
    classes()
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls.__module__.startswith("pyro_flows."):
                assert seen.setdefault(cls.__name__, cls) is cls


def test_folders_are_whole_or_not_there(tmp_path, monkeypatch):
    flow = flows.get("affine")(2)
    path = save(flow, tmp_path / "flow")
    with pytest.raises(ValueError, match="is there already"):
        save(flow, path)
    save(moved(flow), path, overwrite=True)
    kept = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr("pyro_flows.io.folder.synchronise", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(moved(flow), path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == kept and list(tmp_path.iterdir()) == [path]
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not replaced"):
        save(flow, tmp_path / "else", overwrite=True)
    with pytest.raises(ValueError, match="in one that exists"):
        save(flow, tmp_path / "no" / "where")


def test_what_cannot_be_saved(tmp_path):
    for bad in (3, nn.Linear(1, 1), pf.AutoFlow(regression)):
        with pytest.raises(ValueError, match="saved must be|not set up"):
            save(bad, tmp_path / "x")
    with pytest.raises(ValueError, match="draws must be"):
        save(flows.get("affine")(2), tmp_path / "x", draws=5)
    with pytest.raises(ValueError, match="cannot describe"):
        describe(MLP(1, 1, activation=lambda x: x))
    assert restore(*describe(MLP(1, 1, activation=torch.tanh))).activation is torch.tanh
    assert Path(tmp_path).exists()
