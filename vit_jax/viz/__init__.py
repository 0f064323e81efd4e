"""What people look at: pictures of runs and models."""
