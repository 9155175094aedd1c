"""The cluster file: valid by Ray's own schema, and in step with what the project installs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / "ray_cluster.yaml").read_text(encoding="ascii"))
    return loaded


def test_the_file_is_valid_by_rays_own_schema(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_a_slip_in_the_file_would_be_noticed(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["cpu_pool"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(cluster))


def test_there_is_a_head_a_cpu_pool_and_a_gpu_pool_that_grow_within_limits(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", "cpu_pool", "gpu_pool"}
    assert cluster["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0, "parts must run on the pools, not beside the driver"
    assert "GPU" not in types["cpu_pool"]["resources"]
    assert types["gpu_pool"]["resources"]["GPU"] >= 1
    for pool in ("cpu_pool", "gpu_pool"):
        assert 0 <= types[pool]["min_workers"] <= types[pool]["max_workers"] <= cluster["max_workers"]


def test_every_node_installs_the_packages_and_the_gpu_pool_the_heavy_ones(cluster: dict[str, Any]) -> None:
    everywhere = " && ".join(cluster["setup_commands"])
    on_gpus = " && ".join(cluster["available_node_types"]["gpu_pool"]["worker_setup_commands"])
    assert re.search(r"pip install .*-c constraints\.txt \.$", everywhere)
    assert re.search(r"pip install .*-c constraints\.txt '\.\[all\]'$", on_gpus)
    assert "." in cluster["file_mounts"].values(), "the setup commands need the checkout on the node"


def test_the_images_hold_the_ray_of_the_constraints_on_one_supported_python(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (CHECKOUT / "constraints.txt").read_text(encoding="ascii"), re.MULTILINE)
    assert pinned is not None
    gpu_docker = cluster["available_node_types"]["gpu_pool"]["docker"]
    for image in (cluster["docker"]["image"], gpu_docker["worker_image"]):
        found = re.fullmatch(r"rayproject/ray:([\d.]+)-py(3\d\d)(-gpu)?", image)
        assert found is not None
        assert found[1] == pinned[1]
        assert found[2] in {"311", "312", "313"}


def test_the_file_holds_no_secret(cluster: dict[str, Any]) -> None:
    text = yaml.safe_dump(cluster).lower()
    assert not re.search(r"secret|password|token|akia[0-9a-z]{16}|private_key", text)
