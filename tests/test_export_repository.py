from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.repository import InvalidRepository, ModelVersions, main, staging_folder
from export.triton import ServingSettings, model_names

SETTINGS = ServingSettings(
    name="m",
    labels=("a", "b"),
    thresholds={"a": 0.5, "b": 0.5},
    problem_type="multi_label_classification",
    max_tokens=32,
    pad_token_id=0,
    precision="fp32",
    provenance={},
)


def publish(repository: Path, content: str = "x", promote: bool = True, settings: ServingSettings = SETTINGS) -> int:
    with staging_folder(repository) as staging:
        for name in model_names(settings.name, settings.kind)[1:]:
            (staging / name).mkdir()
            (staging / name / "file").write_text(content)
        (staging / settings.name).mkdir()
        report = {
            "settings": asdict(settings),
            "bytes": 10,
            "exported": "2026-11-21T10:00:00",
            "model_version": "1.2.0",
        }
        return ModelVersions(repository, settings.name).publish(settings, staging, report, promote)


def test_settings_of_the_machine_can_be_changed_and_stay_with_the_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path)
    versions = ModelVersions(tmp_path, "m")
    order = ["configure", "--repository", str(tmp_path), "--name", "m"]
    assert main([*order, "instances=4", "max_batch_tokens=0", "max_batch_size=128"]) == 0
    assert "instances=4" in capsys.readouterr().out
    config = text_format.Parse((tmp_path / "m_encoder/config.pbtxt").read_text(), pb.ModelConfig())
    assert config.instance_group[0].count == 4 and config.max_batch_size == 128
    assert "max_batch_tokens" not in config.parameters
    assert not versions.check_configs() and not versions.check_files(1)
    publish(tmp_path, "y")
    assert versions.rollback() == 1 and versions.settings(1).instances == 4
    before = (tmp_path / "m_encoder/config.pbtxt").read_text()
    for wrong, message in (("instances=0", "instances is 0, must be at least 1"), ("precision=1", "cannot be set")):
        assert main([*order, wrong]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "m_encoder/config.pbtxt").read_text() == before
    with pytest.raises(SystemExit):
        main([*order, "instances"])
    assert "SETTING=NUMBER" in capsys.readouterr().err


def loaded(repository: Path, name: str = "m") -> int:
    """The version that a server would serve that starts now; every part must be able to load it."""
    configs = {
        folder.name: text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
        for folder in repository.iterdir()
        if folder.is_dir()
    }
    for folder, config in configs.items():
        for number in config.version_policy.specific.versions:
            assert (repository / folder / str(number)).is_dir(), (folder, number)
    ensemble = configs[name]
    (number,) = ensemble.version_policy.specific.versions
    for step in ensemble.ensemble_scheduling.step:
        assert step.model_version == number
        assert number in configs[step.model_name].version_policy.specific.versions
        assert (repository / step.model_name / str(number) / "file").read_text()
    return number


def test_versions_count_up_and_the_newest_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = tmp_path / "r"
    assert [publish(r, f"v{i}") for i in (1, 2, 3)] == [1, 2, 3]
    assert loaded(r) == 3
    assert publish(r, "v4", promote=False) == 4
    assert loaded(r) == 3
    assert main(["list", "--repository", str(r), "--name", "m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [("served" in line) for line in lines[1:]] == [False, False, True, False]
    assert all("1.2.0" in line for line in lines[1:])
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_rollback_goes_to_the_version_that_was_served_before(tmp_path: Path) -> None:
    r, call = tmp_path / "r", ["--repository", str(tmp_path / "r"), "--name", "m"]
    publish(r)
    assert main(["rollback", *call]) == 2  # the first one
    publish(r)
    publish(r, promote=False)
    assert main(["promote", "3", *call]) == 0 and loaded(r) == 3
    assert main(["promote", "3", *call]) == 0  # again: nothing changes
    assert main(["rollback", *call]) == 0 and loaded(r) == 2
    assert main(["rollback", *call]) == 0 and loaded(r) == 3
    assert main(["verify", *call]) == 0


def test_prune_keeps_the_newest_the_served_one_and_the_one_before(tmp_path: Path) -> None:
    r = tmp_path / "r"
    for _ in range(6):
        publish(r)
    versions = ModelVersions(r, "m")
    versions.promote(2)  # so 6 is the one to roll back to
    assert versions.prune(keep=0) == [1, 3, 4, 5]
    assert versions.numbers() == [2, 6] and loaded(r) == 2
    assert publish(r) == 7
    assert versions.prune(keep=1) == [6]
    with pytest.raises(InvalidRepository, match="--keep is -1"):
        versions.prune(-1)


def test_prune_keeps_a_version_that_a_cascade_asks(tmp_path: Path) -> None:
    r = tmp_path / "r"
    for _ in range(4):
        publish(r)
    for cascade, encoder in (("m_cascade", {"model": "m", "version": 1}), ("x_cascade", {"model": "x", "version": 2})):
        folder = r / cascade / "1"
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({"encoder": encoder}))
    assert ModelVersions(r, "m").prune(keep=0) == [2]
    assert ModelVersions(r, "m").numbers() == [1, 3, 4]


def test_a_damaged_version_is_found_and_not_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r, call = tmp_path / "r", ["--repository", str(tmp_path / "r"), "--name", "m"]
    publish(r, "one")
    publish(r, "two")
    (r / "m_encoder/1/file").write_text("0ne")
    (r / "m_tokenizer/1/file").unlink()
    (r / "m_tokenizer/1/more").touch()
    assert main(["verify", *call]) == 1
    said = capsys.readouterr()
    assert "version 1: damaged" in said.out and "version 2: every file is as it was exported" in said.out
    assert "m_encoder/1/file has the SHA-256" in said.err and "m_tokenizer/1/file is missing" in said.err
    assert "m_tokenizer/1/more was not there at export" in said.err
    assert main(["rollback", *call]) == 2
    assert "version 1 of m is damaged, it is not promoted" in capsys.readouterr().err
    assert loaded(r) == 2
    config = r / "m/config.pbtxt"
    config.write_text(config.read_text().replace("0.5", "0.4"))
    assert main(["verify", *call]) == 1
    assert "m/config.pbtxt is not as version 2 was exported" in capsys.readouterr().err
    assert main(["promote", "2", *call]) == 0  # writes it anew
    assert main(["verify", "2", *call]) == 0


def test_wrong_calls_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = tmp_path / "r"
    publish(r)
    assert main(["list", "--repository", str(r)]) == 2
    assert "has no model 'toxicity'; it has m: see --name" in capsys.readouterr().err
    assert main(["promote", "9", "--repository", str(r), "--name", "m"]) == 2
    assert "m has no version 9; it has 1" in capsys.readouterr().err
    other = replace(SETTINGS, labels=("a", "c"), thresholds={"a": 0.5, "c": 0.5})
    with pytest.raises(InvalidRepository, match="the labels of m here: a, b; of this artifact: a, c.*another --name"):
        publish(r, settings=other)
    with pytest.raises(InvalidRepository, match="the kind of m here: transformer; of this artifact: linear"):
        publish(r, settings=replace(SETTINGS, kind="linear"))
    assert loaded(r) == 1 and [p.name for p in tmp_path.iterdir()] == ["r"]
    config = r / "m/config.pbtxt"
    config.write_text('name: "m"\n')
    assert main(["list", "--repository", str(r), "--name", "m"]) == 2
    assert "serves no one version by number" in capsys.readouterr().err


def killed_at(step: int, action: object) -> bool:
    """Run ``action`` in a process that dies, without clean-up, instead of its ``step``-th rename; whether it died."""

    def child() -> None:
        counted = 0
        for name in ("rename", "replace"):
            original = getattr(Path, name)

            def dying(self: Path, target: Path, original: object = original) -> Path:
                nonlocal counted
                counted += 1
                if counted == step:
                    os._exit(9)
                return original(self, target)  # type: ignore[operator]

            setattr(Path, name, dying)
        action()  # type: ignore[operator]

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    return process.exitcode == 9


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded")
@pytest.mark.parametrize("what", ["publish", "promote"])
def test_a_crash_at_any_rename_leaves_a_whole_version_serving(what: str, tmp_path: Path) -> None:
    actions = {"publish": lambda r: publish(r, "new"), "promote": lambda r: ModelVersions(r, "m").promote(1)}
    for step in range(1, 30):
        r = tmp_path / str(step) / "r"
        publish(r, "old")
        publish(r, "old")
        died = killed_at(step, lambda r=r: actions[what](r))
        assert loaded(r) in {2, 3 if what == "publish" else 1}
        if not died:
            break
        number = publish(r, "again")  # the lock died with its holder
        assert loaded(r) == number and ModelVersions(r, "m").check_files(number) == []
        ModelVersions(r, "m").prune(keep=2)
        assert loaded(r) == number
    assert not died and step > 5


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded")
def test_a_crash_of_the_first_export_leaves_nothing_that_stops_a_server(tmp_path: Path) -> None:
    for step in range(1, 30):
        r = tmp_path / str(step) / "r"
        publish(r, "other", settings=replace(SETTINGS, name="other"))
        died = killed_at(step, lambda r=r: publish(r, "new"))
        assert loaded(r, "other") == 1
        if not died:
            break
        number = publish(r, "again")
        assert loaded(r) == number
    assert not died and step > 3


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded")
def test_exports_at_once_do_not_collide(tmp_path: Path) -> None:
    r = tmp_path / "r"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=publish, args=(r, f"by {i}")) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [w.exitcode for w in writers] == [0] * 8
    versions = ModelVersions(r, "m")
    assert versions.numbers() == list(range(1, 9))
    assert all(versions.check_files(n) == [] for n in versions.numbers())
    contents = {(r / f"m_encoder/{n}/file").read_text() for n in versions.numbers()}
    assert contents == {f"by {i}" for i in range(8)}
    assert loaded(r) == 8


def test_a_repository_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRepository, match="is a file"):
        publish(tmp_path / "file")
    report = tmp_path / "r/m/1/export.json"
    publish(tmp_path / "r")
    assert json.loads(report.read_text())["files"].keys() == {"m_encoder/1/file", "m_tokenizer/1/file"}
    shutil.rmtree(tmp_path / "r")
    assert publish(tmp_path / "deep/er/r") == 1
