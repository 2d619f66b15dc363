import pytest

C = 4
FACTORIES = {
    "pmsn": lambda sj, **options: sj.PMSNNode(C, **options),
    "tclif": lambda sj, **options: sj.TCLIFNode(**options),
    "tclif_per_channel": lambda sj, **options: sj.TCLIFNode(channels=C, **options),
    "multicompartment": lambda sj, **options: sj.MultiCompartmentNode(3, reset=(0.3, 0.1), **options),
}


@pytest.fixture(params=FACTORIES)
def make(request):
    """A constructor of one of our neurons, for 4 channels."""
    from pmsn_plugins import spikingjelly

    return lambda **options: FACTORIES[request.param](spikingjelly, **options)
