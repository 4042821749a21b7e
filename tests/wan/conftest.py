import pytest


@pytest.fixture(scope="session")
def pipe(converted):
    from phantom_s2v.pipeline.loading import load_models

    return load_models(converted)
