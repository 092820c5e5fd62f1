"""What all tests share: properties are judged by their answers, not by how busy the machine is."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "composer",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("composer")
