"""Many runs put together: suites, seeds, and a controller held to its contract."""
