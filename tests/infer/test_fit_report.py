"""The report: what it holds for models of every kind, one file that stands alone, and what a browser makes of it."""

from __future__ import annotations

import functools
import shutil
import subprocess
from html.parser import HTMLParser

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.diagnostics import Report, Section, Table

QUICK = {"guide": "affine", "max_steps": 200, "seed": 0, "progress": False}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    sd = pyro.sample("sd", dist.HalfNormal(5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, sd), obs=y)


@functools.cache
def fitted(count=80):
    torch.manual_seed(0)
    x = torch.randn(count)
    return pf.fit(regression, x, 2 * x + torch.randn(count), **QUICK)


class Page(HTMLParser):
    """Tags that are open, links to anywhere, and scripts."""

    void = frozenset({"meta", "img", "link", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.elsewhere, self.scripts, self.pictures = [], [], [], 0, 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.pictures += tag == "img"
        self.elsewhere += [value for key, value in attrs if key in ("src", "href") and not value.startswith("data:")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def read(text):
    page = Page()
    page.feed(text)
    return page


def test_one_file_that_stands_alone(tmp_path):
    fit = fitted()
    report = fit.report(tmp_path / "report.html", title="Rows & <columns>")
    text = (tmp_path / "report.html").read_text()
    page = read(text)
    assert not page.open and not page.wrong and not page.elsewhere and not page.scripts
    assert page.pictures >= 5 and "url(" not in text and "<columns>" not in text
    assert (tmp_path / "report.html").stat().st_size < 3e6 and list(tmp_path.iterdir()) == [tmp_path / "report.html"]
    words = str(report)
    for heading in ("Verdict", "Model", "Training", "Posterior", "Data and predictions", "Sensitivity", "Settings and versions"):
        assert f"\n{heading}" in words and f"<h2>{heading}" in text
    assert f": {fit.diagnose().verdict}\n" in words and "elpd_loo" in words and "slope" in words and torch.__version__ in words
    assert str(fit.report(num_samples=200)) == str(fit.report(num_samples=200))


def test_figures_are_those_of_the_posterior():
    fit = fitted()
    x, y = fit._args
    row = next(line.split() for line in str(fit.report()).splitlines() if line.startswith("slope") and "latent" not in line)
    least_squares = float((x * y).sum() / (x * x).sum())
    assert float(row[1]) == pytest.approx(least_squares, abs=0.02) and float(row[2]) == pytest.approx(1 / 80**0.5, rel=0.3)


def enumerated(y):
    mean = pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}).long()
        pyro.sample("y", dist.Normal(mean[..., kind], 1.0), obs=y)


def prior_only():
    pyro.sample("x", dist.Normal(0.0, 1.0))


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


def many(y):
    with pyro.plate("rows", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        (enumerated, (torch.randn(12),), "Posterior"),
        (prior_only, (), "x"),
        (counts, (torch.tensor([[1.0, 2.0, 3.0]] * 12),), "rate[2]"),
        (many, (torch.randn(101),), "The first 60 of 101 numbers"),
    ],
)
def test_models_of_every_kind(model, args, said, tmp_path):
    report = pf.fit(model, *args, **{**QUICK, "max_steps": 20}).report(tmp_path / "report.html", num_samples=300)
    assert said in str(report) and not read((tmp_path / "report.html").read_text()).wrong


def test_minibatches_have_no_verdict_on_all_data_and_say_so(tmp_path):
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    report = pf.fit(model, torch.randn(50), **{**QUICK, "max_steps": 20}).report(tmp_path / "report.html")
    assert report.mark == "no verdict" and "minibatches" in str(report) and "Training" in str(report)


def test_elements_of_a_plate_are_weighed_one_by_one():
    torch.manual_seed(0)
    y = torch.randn(30)
    guide = pf.AutoPlateFlow(many, context={"rows": 4})
    fit = pf.fit(many, y, guide=guide, max_steps=50, seed=0, progress=False)
    words = str(fit.report(num_samples=200))
    assert "Element by element" in words and "of plate 'rows'" in words


def test_what_is_refused_and_what_is_there_stays(tmp_path):
    fit = fitted()
    with pytest.raises(ValueError, match="folder that exists"):
        fit.report(tmp_path / "nowhere" / "report.html")
    with pytest.raises(ValueError, match="at least 100"):
        fit.report(num_samples=5)
    broken = Report("t", "good", "s", [Section("a", [Table(("x",), [("1",)])]), Section("b", [object()])])
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(AttributeError):
        broken.save(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_without_complaint(tmp_path):
    fitted().report(tmp_path / "report.html", num_samples=500)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    shown = subprocess.run(
        [
            BROWSER,
            *options,
            f"--screenshot={tmp_path / 'page.png'}",
            "--window-size=390,2000",
            f"file://{tmp_path / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr and (tmp_path / "page.png").stat().st_size > 50_000
