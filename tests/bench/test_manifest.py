"""The manifest: every entry can be read, says what it must, and one's own manifest stands beside it."""

import re
from pathlib import Path

import pytest

import solvers
from bench import students
from bench.checkpoints import CHECKPOINTS, load
from bench.checkpoints.manifest import Source, entries, entry, in_bytes, not_here, section, sources
from bench.errors import UsageError
from bench.show_checkpoints import print_checkpoints, print_students
from bench.words import parse

ENTRIES = entries()
NAMES = [e.name for e in ENTRIES]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of one's own, to be written."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_MANIFEST", str(tmp_path / "lab.yaml"))
    return tmp_path / "lab.yaml"


def test_names_are_one_of_a_kind_and_can_be_written_in_a_sweep() -> None:
    every = [*NAMES, *section("students"), *CHECKPOINTS.builtin]
    assert len(set(every)) == len(every)
    assert len(NAMES) >= 40
    for name in every:
        assert parse("checkpoint", f"{name}(resolution=64)") == (name, {"resolution": 64})
        assert not set(name) & set(":/,")


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_of_a_piece(name: str) -> None:
    found = entry(name)
    assert found in ENTRIES
    if found.source.url:
        assert found.source.url.endswith({"edm": ".pkl", "adm": ".pt"}[found.loader])
        if size := re.search(r"-(\d+)x\1-", name):
            assert found.resolution == int(size[1])
    else:
        assert found.loader == "diffusers"
    assert not (found.text and found.classes)
    assert ("uncond" in name) <= (found.classes == 0)
    for published in found.published:
        assert all(fid is None or 0 < fid < 500 for row in published.fid.values() for fid in row)
        assert all(any(row) for row in published.fid.values())
        assert list(published.nfe) == sorted(set(published.nfe))


@pytest.mark.parametrize("name", NAMES)
def test_recommended_solvers_are_ours_and_can_spend_their_budgets(name: str) -> None:
    for nfe, text in entry(name).recommended.solvers.items():
        solver, options = parse("solver", text)
        assert options.keys() <= solvers.method(solver).defaults.keys()
        assert 1 <= nfe <= 50


def test_published_numbers_are_those_of_the_papers() -> None:
    rows = {
        (about.citation, solver): dict(zip(about.nfe, row, strict=True))
        for about in entry("edm-cifar10-32x32-uncond-vp").published
        for solver, row in about.fid.items()
    }
    assert rows["zju-pi/diff-sampler, README", "ipndm"] == {5: 13.59, 6: 7.05, 8: 3.69, 10: 2.77}
    assert rows["zju-pi/diff-sampler, README", "dpm_solver_2"][5] is None
    assert rows["thu-nics/USF, README", "dpm_solver_v3"][10] == 2.62


def test_what_is_not_here_says_how_it_comes_and_under_which_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        load("edm-cifar10-32x32-uncond-vp")
    says = "`fewstep pull edm-cifar10-32x32-uncond-vp` brings 213 MiB under CC BY-NC-SA 4.0"
    assert str(caught.value).endswith(says)
    unknown = Source(name="x", url="https://here.org/x.pkl", licence="MIT")
    assert str(not_here("x", [unknown])) == "'x' is not here: `fewstep pull x` brings it under MIT"


ENTRY = "about: ours, loader: edm, resolution: 32, source: {licence: ours, url: 'https://lab.org/x.pkl'}"
WRONG = {
    "checkpoints: {x: {about: a}}": r"manifest entry 'x': source: Field required",
    f"checkpoints: {{x: {{{ENTRY}, colour: red}}}}": r"manifest entry 'x': colour: Extra inputs",
    f"checkpoints: {{x: {{{ENTRY.replace('edm', 'mde')}}}}}": r"manifest entry 'x': loader: Input should be",
    f"checkpoints: {{x: {{{ENTRY.replace('https://lab.org/x.pkl', 'lab')}}}}}": r"source.url: String should match",
    f"checkpoints: {{x: {{{ENTRY.replace('url:', 'hub: a/b, url:')}}}}}": "either `hub: owner/name` or `url",
    f"checkpoints: {{x: {{{ENTRY.replace('url:', 'sha256: beef, url:')}}}}}": "sha256: String should match",
    f"checkpoints: {{x: {{{ENTRY}, published: [{{citation: c, nfe: [5], fid: {{ddim: [1, 2]}}}}]}}}}": (
        "published.0: ddim has 2 numbers for 1 budgets"
    ),
    "checkpoints: [x]": "checkpoints must map names to mappings",
    "checkpoint: {}": "must hold a mapping with the keys checkpoints and students",
    "checkpoints: {x: [}": "line 1 is not YAML",
    "": "must hold a mapping",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_a_manifest_that_is_wrong_is_refused_in_one_line(text: str, says: str, own: Path) -> None:
    own.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        entries()
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_there_is_refused(own: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest .*lab\.yaml cannot be read"):
        entry("x")


def test_one_s_own_entries_come_first_and_hide_others(own: Path) -> None:
    own.write_text(f"checkpoints: {{x: {{{ENTRY}}}, sdxl: {{{ENTRY}}}}}")
    assert [e.name for e in entries()][:2] == ["x", "sdxl"]
    assert len(entries()) == len(ENTRIES) + 1
    assert entry("sdxl").loader == "edm"
    assert entry("edm-cifar10-32x32-cond-vp").classes == 10
    own.write_text("checkpoints: {}")  # and it is read again when it changes
    assert entry("x") is None


def test_a_name_may_need_several_sources(own: Path) -> None:
    parts = "{unet: {hub: a/b, file: u.bin, licence: l}, vae: {hub: c/d, file: v.bin, licence: l}}"
    own.write_text(f"students: {{x: {{sources: {parts}}}}}")
    assert [(s.name, s.hub, s.inside) for s in sources("x")] == [("x/unet", "a/b", "u.bin"), ("x/vae", "c/d", "v.bin")]


def test_the_list_shows_all_with_what_is_known(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_text(f"checkpoints: {{x: {{{ENTRY}, text: true}}}}")
    home = sources("x")[0].home
    home.parent.mkdir(parents=True)
    home.write_bytes(b"weights")
    print_checkpoints(verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == {*NAMES, *CHECKPOINTS.names(), "x"}
    assert next(line for line in lines if line.startswith("x ")).split() == ["x", "here", "32", "text", "ours", "ours"]
    print_checkpoints(verbose=True)
    long = capsys.readouterr().out
    assert "ipndm: 13.59 / 7.05 / 3.69 / 2.77" in long
    assert "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz" in long
    print_students(verbose=True)
    assert all(name in capsys.readouterr().out for name in students.names()[:1])


def test_sizes_are_read_by_people() -> None:
    assert [in_bytes(n) for n in (7, 2_000, 223e6, 3.4e9)] == ["7 B", "1.95 KiB", "213 MiB", "3.17 GiB"]
