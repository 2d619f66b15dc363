import pytest
import torch


@pytest.fixture(scope="session")
def compiled_membranes():
    """Skips where torch.compile and torch.export know no tensor of a class of one's own (torch 2.6)."""
    from pmsn_plugins.snntorch import Membrane

    try:
        torch.compile(lambda x: x.as_subclass(Membrane), backend="eager")(torch.zeros(1))
    except Exception as error:
        pytest.skip(f"torch.compile takes no Membrane: {type(error).__name__}")
