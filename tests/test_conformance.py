"""Every transform and every flow keeps every law, in float32 and float64, with and without context."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from registry import FLOWS, FLOWS_FOR_LAWS, IMAGES, TOLD, TRANSFORMS, UNCONDITIONAL, Flattened

from pyro_flows.testing import FLOW_LAWS, LAWS, Case, check_flow, check_transform

# Tracing is slow and does not depend on these.
ONCE = {"compiles_in_one_graph", "cache_is_never_stale", "pyro_module_trains"}
SHAPES = ((1, 0), (1, 3), (2, 3), (5, 0))
SLOW_SHAPES = (*SHAPES, (2, 0), (5, 3))


# Their inverse is a loop, which a compiler unrolls for every layer and sweep.
SOLVED = {
    *("naf", "umnn", "sospf", "bernstein", "bnaf", "gaussianization"),
    *("BlockAutoregressive", "Coupling(MonotonicNetwork)", "Coupling(MixtureCDF, logistic)", "Elementwise(MixtureCDF, gaussian)"),
    *("Coupling(Bernstein)", "Coupling(SumOfSquares)", "Elementwise(MoebiusMixture)"),
    *("CNF(own field, adjoint)", "cnf"),
    *("Residual(Lipschitz)", "Residual(proximal)", "ConvexPotential", "FreeForm"),
    *("residual", "proximal_residual", "convex_potential"),
}
# Millions of roots.
LONG = {
    (name, "density_integrates_to_one")
    for name in ("gaussianization", "umnn", "naf", "residual", "proximal_residual", "convex_potential", "ttf", "cnf")
}
# Traced for longer than what they would tell beside others that are traced as well.
LONG |= {(name, "compiles_in_one_graph") for name in ("ttf", "Elementwise(DeepSigmoid)", "real_nvp_image", "nsf_autoregressive")}
# Rotations of one variable do not depend on a context.
NOTHING_TO_TURN = {"Orthogonal(cayley)", "Orthogonal(exponential)"}


# The encoder is no part of the likelihood, and trained by a loss of its own.
EXCEPT = {("FreeForm", "gradients_reach_everything")}


def _cases(names, laws):
    for name in names:
        for law in laws:
            if (name, law) in EXCEPT:
                continue
            slow = (name in SOLVED and law == "compiles_in_one_graph") or (name, law) in LONG
            yield pytest.param(name, law, marks=pytest.mark.slow if slow else ())


def _shapes(name, request):
    """All of them with --slow, else fewer, and two where the inverse is a loop."""
    if request.config.getoption("--slow"):
        return SLOW_SHAPES
    return ((1, 0), (2, 3)) if name in SOLVED else SHAPES


def _check(check, factory, law, context=True, shapes=SHAPES):
    for input_dim, context_dim in shapes:
        if (context_dim and not context) or (law in ONCE and (input_dim, context_dim) != (2, 3 if context else 0)):
            continue
        dtypes = (torch.float64,) if law == "compiles_in_one_graph" else (torch.float32, torch.float64)
        check(factory, input_dim=input_dim, context_dim=context_dim, laws=[law], dtypes=dtypes)


@pytest.mark.parametrize(("name", "law"), list(_cases(TRANSFORMS, LAWS)))
def test_transform_keeps_law(name, law, request):
    shapes = _shapes(name, request)
    _check(check_transform, TRANSFORMS[name], law, shapes=[s for s in shapes if s[0] > 1] if name in NOTHING_TO_TURN else shapes)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional_transform_keeps_law(name, law):
    if name.startswith("BatchNorm") and law == "cache_is_never_stale":
        pytest.skip("the law turns training mode on, in which its directions are not each other's inverse")
    _check(check_transform, UNCONDITIONAL[name], law, context=False, shapes=((1, 0), (2, 0), (5, 0)))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", TOLD)
def test_transform_of_a_context_of_its_own_keeps_law(name, law):
    if (name, law) == ("PartialCentring", "starts_near_the_identity"):
        pytest.skip("it starts at the posterior of the prior that it is told")
    for dim, more in ((1, 0), (2, 3), (5, 0)):
        if law not in ONCE or (dim, more) == (2, 3):
            dtypes = (torch.float64,) if law == "compiles_in_one_graph" else (torch.float32, torch.float64)
            factory = lambda d, c: TOLD[name](d, c - 2 * d)  # noqa: E731
            check_transform(factory, input_dim=dim, context_dim=2 * dim + more, laws=[law], dtypes=dtypes)


@pytest.mark.parametrize(("name", "law"), list(_cases(FLOWS, [*LAWS, *FLOW_LAWS])))
def test_flow_keeps_law(name, law, request):
    _check(check_flow, FLOWS_FOR_LAWS[name], law, shapes=_shapes(name, request))


# Laws that are more than shapes and copies, for flows of many variables; the first two take a Jacobian for each point.
WIDE = ("round_trip", "log_det_is_that_of_autograd", "log_dets_are_opposite", "gradients_reach_everything", "extreme_inputs")
WIDE_CASES = [
    pytest.param(name, law, marks=pytest.mark.slow if name in SOLVED | {"sylvester"} or law in WIDE[:2] else ())
    for name in FLOWS
    for law in WIDE
]


@pytest.mark.parametrize(("name", "law"), WIDE_CASES)
def test_flow_of_32_variables_keeps_law(name, law):
    _check(check_flow, FLOWS_FOR_LAWS[name], law, shapes=((32, 0), (32, 3)))


@pytest.mark.parametrize(("name", "law"), list(_cases(IMAGES, LAWS)))
def test_transform_of_images_keeps_law(name, law):
    for context_dim in (0, 3) if name != "Squeeze" else (0,):
        if law not in ONCE or context_dim or name == "Squeeze":
            dtypes = (torch.float64,) if law == "compiles_in_one_graph" else (torch.float32, torch.float64)
            check_transform(
                lambda d, c: Flattened(IMAGES[name](c)), input_dim=16, context_dim=context_dim, laws=[law], dtypes=dtypes
            )


_FRESH_PROCESS = """
import pickle, sys, torch
torch.manual_seed(987)
from pyro_flows import flows
folder = sys.argv[1]
for name in flows.names():
    flow = flows.get(name)(3, 2)
    flow.load_state_dict(torch.load(f"{folder}/{name}.pt", weights_only=True))
    x, context, y, log_det = torch.load(f"{folder}/{name}.expected.pt", weights_only=True)
    found = flow.forward_and_log_det(x, context)
    assert torch.equal(found[0], y) and torch.equal(found[1], log_det), name
print("all equal")
"""


def test_state_dict_in_a_fresh_process_with_another_seed_is_bit_exact(tmp_path):
    torch.set_num_threads(1)
    for name, factory in FLOWS.items():
        case = Case(factory, 3, 2, torch.float32, 0)
        flow, x, context = case.build(), case.inputs(6), case.context(6)
        y, log_det = flow.forward_and_log_det(x, context)
        torch.save(flow.state_dict(), tmp_path / f"{name}.pt")
        torch.save((x, context, y.detach(), log_det.detach()), tmp_path / f"{name}.expected.pt")
    code = "import torch; torch.set_num_threads(1)\n" + _FRESH_PROCESS
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all equal", done.stderr


def test_every_flow_is_picklable_by_its_factory():
    for name, factory in FLOWS.items():
        assert pickle.loads(pickle.dumps(factory)) is factory, name
