"""Which vLLM is taken, what is said of it, and what is set for it: all without vLLM."""

from __future__ import annotations

import os
import warnings

import pytest

from trainer.sampling import vllm_support


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cu129", "0.33.0"])
def test_versions_with_the_interfaces_that_are_used_are_taken(monkeypatch, version):
    monkeypatch.setattr(vllm_support, "installed_version", lambda: version)
    assert vllm_support.require_vllm("x") == version
    tested = version.startswith("0.32")
    assert ("is tested with" in vllm_support.note(version)) == tested
    assert ("not tested here" in vllm_support.note(version)) != tested


@pytest.mark.parametrize("version", ["0.31.0", "0.22.0", "0.34.0", "1.0.0"])
def test_others_are_refused_by_name(monkeypatch, version):
    monkeypatch.setattr(vllm_support, "installed_version", lambda: version)
    with pytest.raises(ValueError, match=rf"use_vllm: vLLM {version} is installed; tested is 0.32.0"):
        vllm_support.require_vllm("use_vllm")


def test_without_vllm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(vllm_support, "installed_version", lambda: None)
    with pytest.raises(ModuleNotFoundError, match=r"use_vllm needs vLLM 0.32.0: pip install .*docs/vllm.md"):
        vllm_support.require_vllm("use_vllm")


def test_trls_warning_is_left_out_and_no_other():
    def warn():
        warnings.warn("TRL currently supports vLLM versions from 0.22.0 to 0.31.0. You have ...", stacklevel=2)
        warnings.warn("something else", stacklevel=2)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        with vllm_support.trl_version_warnings_quiet():
            warn()
            warnings.filterwarnings("error", message="set by an import in between")
        assert [str(one.message) for one in seen] == ["something else"]
        assert len(warnings.filters) == len(filters) + 1
        warn()
        assert len(seen) == 3


def test_what_a_user_has_set_stays(monkeypatch):
    theirs = {"TORCHDYNAMO_DISABLE": "0", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    environment = dict(theirs)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(vllm_support, "_available_gib", lambda: 64.0)
    vllm_support.prepare_environment(cpu=True)
    assert environment.items() >= theirs.items()
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4"


@pytest.mark.parametrize(("available", "taken"), [(100.0, 4), (16.0, 4), (9.0, 2), (3.0, 1)])
def test_the_cache_on_a_cpu_leaves_room_on_a_small_machine(monkeypatch, available, taken):
    monkeypatch.setattr(vllm_support, "_available_gib", lambda: available)
    assert vllm_support.cpu_cache_gib() == taken
