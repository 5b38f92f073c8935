"""What jobs/doctor.py checks before GPU hours are spent; each check is a module."""
