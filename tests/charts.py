"""What tests of figures share: a backend without a screen, and settings and figures that end with each test."""
import matplotlib
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first


@pytest.fixture(autouse=True)
def own_settings():
    with matplotlib.rc_context():
        yield
    plt.close("all")
