"""One cloud for all tests of AWS in this process, empty at the beginning of each."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import botocore.session
import pytest

from prefect_gpu.providers.aws.driver import Aws
from tests.fakes.aws import AwsCloud


@pytest.fixture(scope="session", autouse=True)
def _models_of_services_are_read_once() -> Iterator[None]:
    """Each test's driver has a boto3 session of its own, which would read EC2's 5 MB of descriptions again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def running_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsCloud]:
    cloud = AwsCloud.start(tmp_path_factory.mktemp("aws"))
    yield cloud
    cloud.stop()


@pytest.fixture
def cloud(running_cloud: AwsCloud) -> AwsCloud:
    running_cloud.reset()
    return running_cloud


@pytest.fixture
def driver(cloud: AwsCloud) -> Aws:
    return cloud.driver()
