"""Settings under `cer`, what is refused, versions of verl, and the plug-in as verl loads it."""

import logging
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from verl.trainer.ppo.v1 import get_trainer_cls
from verl_on_cpu import compose_config

from cer_verl.plugin import check_verl_version
from cer_verl.settings import CERSettings, read_settings


def test_settings_come_from_hydras_command_line():
    assert read_settings(compose_config()) == CERSettings("cer", 0.5, None, 0.5, True)
    config = compose_config("+cer.reward=total_entropy", "+cer.weight=1", "+cer.scale=20.0", "+cer.right_from=0.0")
    assert read_settings(config) == CERSettings("total_entropy", 1, 20.0, 0.0, True)
    assert not read_settings(compose_config("+cer.measure_validation=false")).measure_validation


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+cer.wieght=1", r"cer.wieght is unknown: expected one of reward, weight, scale, right_from, measure_valid"),
        ("+cer.reward=length", "cer.reward is 'length': expected one of cer, total_entropy"),
        ("+cer.weight=-1", "cer.weight is -1: expected a finite number >= 0"),
        ("+cer.weight=many", "cer.weight is 'many': expected a finite number >= 0"),
        ("+cer.weight=nan", "cer.weight is nan: expected a finite number >= 0"),
        ("+cer.scale=20", "cer.scale belongs to cer.reward=total_entropy; cer.reward is cer"),
        ("+cer={reward:total_entropy,scale:0}", "cer.scale is 0: expected a finite number > 0"),
        ("+cer.right_from=true", "cer.right_from is True: expected a finite number"),
        ("+cer.measure_validation=1", "cer.measure_validation is 1: expected true or false"),
        ("+cer=0.5", r"cer is 0.5: expected keys under it, as in \+cer.weight=0.5"),
        ("algorithm.rollout_correction.bypass_mode=True", "bypass_mode=True skips the pass .* makes the entropies"),
        ("trainer.use_v1=False", "use_v1=False selects verl's old trainer"),
        ("reward.reward_model.enable=True", "reward_model.enable=True scores with a model"),
        ("algorithm.filter_groups.enable=True", "filter_groups.enable=True drops groups that are all right"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(override, message):
    config = compose_config("trainer.v1.trainer_mode=cer_sync", f"++{override.lstrip('+')}")
    with pytest.raises(ValueError, match=message) as error:
        get_trainer_cls("cer_sync")(config)
    assert "\n" not in str(error.value)


def test_a_version_of_verl_out_of_range_is_refused_in_one_line():
    check_verl_version(version("verl"))
    check_verl_version("0.9.1.post1")
    for other in ("0.9.0", "0.9.2", "0.10.0"):
        with pytest.raises(
            ImportError, match=rf"works with verl <0.9.2,>=0.9.1, found {other}: pip install verl==0.9.1"
        ):
            check_verl_version(other)


def test_the_trainer_is_a_synchronous_one_for_verl():
    """For verl every mode but "sync" is asynchronous: another replay buffer, prompts fetched one at a time."""
    trainer = get_trainer_cls("cer_sync")(compose_config("trainer.v1.trainer_mode=cer_sync"))
    plain = get_trainer_cls("sync")(compose_config("trainer.v1.trainer_mode=sync"))
    assert type(trainer.replay_buffer) is type(plain.replay_buffer)
    assert trainer.trainer_mode == plain.trainer_mode == "sync"
    assert trainer.parameter_sync_step == plain.parameter_sync_step


ENTRY_POINT = [point for point in entry_points(group="verl.plugins") if point.value == "cer_verl.plugin"]


@pytest.mark.skipif(not ENTRY_POINT, reason="cer_ext is not installed here, so it has no entry points")
def test_verl_finds_the_installed_plugin_by_its_entry_point():
    program = """
import verl
from verl.trainer.ppo.v1 import get_trainer_cls
import verl.utils.experimental.torch_functional as head
print(get_trainer_cls("cer_sync").__module__, head.FusedLinearForPPO.__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-2:] == ["cer_verl.cer_trainer", "cer_verl.fused_head"], done.stderr[-2000:]


def test_verl_swallows_what_an_entry_point_raises_so_the_plugin_logs_it(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "cer_verl.plugin")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.8.0")
    with caplog.at_level(logging.ERROR), pytest.raises(ImportError, match=r"found 0\.8\.0"):
        __import__("cer_verl.plugin")
    assert "the CER plug-in for verl was not loaded: ImportError: cer_verl works with verl" in caplog.text
