"""What the demo's tests share: one tiny real model and one running server a worker."""

import numpy as np
import pytest
from running import Server


@pytest.fixture(scope="session")
def service():
    """The demo's service around a model of `fi_jax/configs/tiny.py` with random weights, and the bundled parser."""
    from fi_jax.cli.configs import load_config
    from fi_jax.demo.service import Service
    from fi_jax.inference.answerer import load_answerer
    from fi_jax.labels.registry import vocabulary
    from fi_jax.weights.bundle import TrainedModel

    config = load_config("tiny")
    size = len(vocabulary(config.data.vocabulary))
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(size, config.model.knowledge.prompt_size)).astype(np.float32)
    graph = rng.dirichlet(np.ones(size), size).astype(np.float32)
    return Service(load_answerer(TrainedModel(config, {}, prompts, graph, {})))


@pytest.fixture(scope="session")
def server(service):
    """A server of its own for this worker."""
    running = Server(service)
    yield running
    running.stop()
    assert not running.thread.is_alive()
