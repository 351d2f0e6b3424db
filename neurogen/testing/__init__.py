"""What proves an installation: `neurogen.testing.recorded`, 100,000 tokens that every device must choose."""
